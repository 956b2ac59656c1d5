"""Stream a completion with nothing but ZeroMQ and MessagePack: what a client in any language does.

    waferline serve demo &
    python examples/zmq_client.py "Once upon a time"

Needs the packages ``pyzmq`` and ``msgpack``. docs/protocol.md describes the messages.
"""

import sys

import msgpack
import zmq

DEFAULT_ADDRESS = "tcp://127.0.0.1:5757"


def main() -> int:
    if not 2 <= len(sys.argv) <= 3:
        print(f"usage: zmq_client.py PROMPT [ADDRESS (default {DEFAULT_ADDRESS})]", file=sys.stderr)
        return 2
    prompt = sys.argv[1]
    address = sys.argv[2] if len(sys.argv) == 3 else DEFAULT_ADDRESS

    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvhwm = 0  # read from the wire at once, however slow the terminal
        socket.connect(address)

        # One message is one frame that holds one map. The id is ours to choose.
        request = {
            "type": "generate",
            "id": "story",
            "prompt": prompt,
            "params": {"max_tokens": 200, "temperature": 0.7},
        }
        socket.send(msgpack.packb(request))

        next_seq = 0
        while True:
            message = msgpack.unpackb(socket.recv())
            match message["type"]:
                case "accepted":
                    print(f"[seed {message['seed']}]", file=sys.stderr)
                case "tokens":
                    if message["seq"] != next_seq:
                        raise RuntimeError(f"message {next_seq} was lost")
                    next_seq += 1
                    print(message["text"], end="", flush=True)
                case "finished":
                    print(f"\n[{message['num_output_tokens']} tokens, {message['finish_reasons'][0]}]", file=sys.stderr)
                    return 0
                case "error":
                    print(f"{message['code']}: {message['message']}", file=sys.stderr)
                    return 1


if __name__ == "__main__":
    sys.exit(main())
