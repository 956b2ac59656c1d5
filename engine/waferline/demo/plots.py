"""The plots of the stories, written in a small template language that `grammar.py` expands.

    {hero:he}       a word of the cast, in the form that the spec names (see `words.py`)
    [one|two|]      one of the alternatives, nested as deep as you like; an empty one makes the text optional
    TRY[a|b|c]      two or three of the alternatives in random order, led by "First,", "Then" and "After that,"
    <toy.noun>      the field `noun` of the record drawn for the plot's slot `toy`; it may hold template text itself
    <glad>          a phrase of the table `PHRASES`

A blank line starts a new paragraph; other white space does not count. `setup` is what the reader should know before the
day of the story begins, and `story` begins on that day, with a capital and without saying which day it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .words import BIG_KINDS, KINDS, SWIMMING_KINDS, TINY_KINDS

FAIR = ("sunny", "bright", "warm", "cloudy", "windy")
DRY = (*FAIR, "foggy")
NO_SNOW = (*DRY, "rainy")
ANY_DAY = (*NO_SNOW, "snowy", "cold")
NIGHT = ("starry", "quiet", "dark", "clear")

LAND_KINDS = tuple(kind for kind in KINDS if kind not in SWIMMING_KINDS)
LARGER_KINDS = tuple(kind for kind in KINDS if kind not in TINY_KINDS)

Record = Mapping[str, str]


@dataclass(frozen=True)
class Plot:
    """One kind of story: its text, the weather it may happen in, and the records it draws from."""

    story: str
    setup: str = ""
    weathers: tuple[str, ...] = ANY_DAY
    at_night: bool = False
    hero_kinds: tuple[str, ...] = tuple(KINDS)
    friend_kinds: tuple[str, ...] = tuple(KINDS)
    slots: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)


PHRASES: dict[str, str] = {
    "glad": "[very happy|so happy|full of joy]",
    "sad": "[very sad|sad|ready to cry]",
    "suddenly": "[Suddenly,|All at once,|Just then,|At that moment,]",
    "at_last": "[At last,|Finally,|In the end,]",
    "thought": "[thought for a moment|thought and thought]",
    "junk": "[an old shoe|a pile of leaves|a sleepy beetle|two snails|an empty nest|a gray feather|a rusty spoon"
    "|a cracked pot|a wet stick|some acorns]",
    "thanks": '["Thank you!"|"Thank you so much!"|"Oh, thank you!"]',
    "looked_out": "[looked out of the window|stepped outside|opened the door]",
    "hug": "[a big hug|a warm hug|a long hug]",
    "laughed": "[laughed|giggled|laughed out loud]",
}

PLOTS: dict[str, Plot] = {
    "lost treasure": Plot(
        weathers=NO_SNOW,
        setup="""[{hero:His} favorite thing was {thing:a}, and {hero:he} {thing:use}. |{hero} had {thing:a}. {hero:He}
        {thing:use}. |{elder} had given {hero:him} {thing:a}, and {hero:he} {thing:use}.]""",
        story="""{hero} [reached for|looked for|wanted to take] the {thing:noun}, but it was [gone|not there|nowhere to
        be seen]. ["Oh no! Where is my {thing:noun}?" {hero:he} cried.|"My {thing} is gone!" cried {hero}.] [{hero:He}
        had to find it.|{hero:His} eyes filled with tears.|]

        [First,|At first,] {hero:he} [looked|searched] {place_a:search}, but [there was nothing there but
        <junk>|{hero:he} found only <junk>|{hero:he} saw only <junk>]. Then {hero:he} looked {place_b:search}, [but the
        {thing:noun} was not there either|and found <junk>, but no {thing:noun}]. [{hero} sat down on a stone and
        sighed.|{hero} felt <sad>.|]

        <suddenly> {helper:a_kind} {helper:came}. ["Why are you so sad?"|"What is the matter?"|"What are you looking
        for?"] asked {helper:the}. ["I have lost my {thing},"|"I cannot find my {thing},"] said {hero}. {helper:The}
        <thought>. "I saw something {thing:color} {place_c:search}," {helper:he} said. ["Come with me!"|"Let us look
        there together."|"Come, I will show you."]

        They went to {place_c} together. There, {place_c:search}, lay the {thing:noun}! [It was a little wet, but it
        was safe.|It was dusty, but it was not broken.|] {hero} [hugged it tight|jumped for joy|danced in a circle].
        <thanks> {hero:he} said. [{helper:The} only smiled.|"Friends help each other," said {helper:the}.|]

        [From that day on,|After that,] {hero} [always put the {thing:noun} beside {hero:his} bed before {hero:he} went
        to sleep|took very good care of the {thing:noun}|kept the {thing:noun} on a hook by the door].""",
    ),
    "stuck in a tree": Plot(
        weathers=FAIR,
        hero_kinds=tuple(kind for kind in KINDS if kind not in BIG_KINDS),
        friend_kinds=LARGER_KINDS,
        setup="[{hero} had a new {color} <toy.noun>.|{elder} had made {hero:him} a {color} <toy.noun>.]",
        slots={
            "toy": (
                {"noun": "kite", "mishap": "The string slipped away, and the kite flew into a tall tree."},
                {"noun": "ball", "mishap": "{hero} kicked the ball so high that it landed in a tall tree."},
                {"noun": "hat", "mishap": "A gust of wind took the hat and hung it on a tall tree."},
                {"noun": "balloon", "mishap": "The balloon slipped away and got caught in a tall tree."},
                {"noun": "paper plane", "mishap": "The paper plane flew up and up and landed in a tall tree."},
            )
        },
        story="""{hero} took the <toy.noun> to [the meadow|the hill|the park]. [{hero:He} was <glad>.|It was the best
        day of the week.|] <suddenly> something went wrong. <toy.mishap> [It hung there, high above the ground.|]

        TRY[{hero:he} jumped as high as {hero:he} could, but the branch was too high. |{hero:he} shook the tree, but
        only [leaves|acorns|two leaves] fell down. |{hero:he} threw a pine cone at it, but the pine cone
        [missed|bounced off {hero:his} nose]. |{hero:he} stood on an old bucket, but it wobbled and {hero:he} fell into
        the grass. |{hero:he} poked at it with a long stick, but the stick [was too short|broke in two].] ["It is no
        use," said {hero}.|{hero} was ready to give up.|{hero} looked up at the <toy.noun> and sighed.]

        [<suddenly> {bird:a_kind} flew by. ["Can I help you?"|"What is the matter?"] asked {bird:the}. "My <toy.noun>
        is stuck in the tree," said {hero}, "and I cannot reach it." {bird:The} flew up and [pulled and pulled|tugged
        at it with all {bird:his} might], until the <toy.noun> came [down|tumbling down].

        <thanks> cried {hero}, and {hero:he} gave {bird:the} [a handful of seeds|a piece of bread|some sweet berries].
        [After that, the two of them played together every day.|"Call me whenever you need wings," said {bird:the}.
        |{bird:The} sang a happy song.] |<suddenly> {hero:his} friend {friend:full} came by. ["Do not give up!"|"I have
        an idea!"] said {friend}. "Climb on my shoulders. Together we are tall!" {hero} climbed up and stretched and
        stretched, until {hero:he} could touch the <toy.noun>. [With one last pull, it was free.|Down it came!]

        The two friends <laughed> and [played with the <toy.noun>|took turns with the <toy.noun>] until the sun went
        down. [{hero} had learned that two friends can reach higher than one.|"Two are taller than one," said
        {hero}.]]""",
    ),
    "lost little one": Plot(
        weathers=NO_SNOW,
        slots={
            "young": (
                {"kid": "duckling", "parent": "duck", "sound": "Peep, peep", "home": "the quiet lake"},
                {"kid": "chick", "parent": "hen", "sound": "Cheep, cheep", "home": "the farmyard"},
                {"kid": "gosling", "parent": "goose", "sound": "Peep, peep", "home": "the wide marsh"},
                {"kid": "fawn", "parent": "deer", "sound": "Help, help", "home": "the pine woods"},
                {"kid": "calf", "parent": "cow", "sound": "Moo, moo", "home": "the far pasture"},
                {"kid": "owlet", "parent": "owl", "sound": "Hoo, hoo", "home": "the hollow tree"},
                {"kid": "cub", "parent": "bear", "sound": "Help, help", "home": "the rocky hillside"},
                {"kid": "bunny", "parent": "rabbit", "sound": "Help, help", "home": "the clover field"},
            )
        },
        story="""{hero} was walking [past|near|to] {place_a} when {hero:he} heard a [small|tiny|soft] voice.
        "<young.sound>!" [said|cried] the voice. Under a bush sat a little <young.kid>, all alone. [A big tear rolled
        down its cheek.|It was shaking with fear.|]

        ["I cannot find my mother,"|"I have lost my mother,"] said the <young.kid>. ["Do not cry,"|"Do not worry,"]
        said {hero}. ["We will find her together."|"I will help you."] And the <young.kid> [followed {hero:him} down
        the path|walked close beside {hero:him}].

        First, they went to {place_b}. [They called and called, but nobody answered.|There they met {helper:a_kind},
        but {helper:the} had not seen any <young.parent>.|They looked everywhere, but they saw only <junk>.] Then they
        looked {place_c:search}, [but nobody was there|but they found only <junk>]. The <young.kid> [began to cry
        again|was very tired]. ["We will not give up," said {hero}.|{hero} sang a little song to make it brave.|]

        <at_last> they came to <young.home>. {hero} called as loudly as {hero:he} could. <suddenly> a big
        <young.parent> came hurrying out. "My baby!" she cried. The <young.kid> ran to its mother, and she [hugged it
        tight|kissed it on the nose|wrapped it in her arms].

        "Thank you, {hero}," said the <young.parent>. ["You have a kind heart."|"You are a good friend."] [She gave
        {hero:him} {food:a} to take home.|Then they all sat down and ate {food:a}.|] After that, {hero} and the
        <young.kid> played together every [day|week].""",
    ),
    "noise in the night": Plot(
        at_night=True,
        weathers=NIGHT,
        setup="""{hero} was [a little|very] afraid of the dark. [Every night {hero:he} pulled the blanket over
        {hero:his} head.|]""",
        slots={
            "noise": (
                {"sound": "Tap, tap, tap", "who": "a little robin with cold feet", "noun": "robin"},
                {"sound": "Scratch, scratch", "who": "a tiny mole with muddy paws", "noun": "mole"},
                {"sound": "Bump, bump", "who": "a lost hedgehog with leaves on its back", "noun": "hedgehog"},
                {"sound": "Squeak, squeak", "who": "a hungry mouse with big ears", "noun": "mouse"},
                {"sound": "Hoo, hoo", "who": "a young owl with round eyes", "noun": "owl"},
                {"sound": "Ribbit, ribbit", "who": "a green frog in a flowerpot", "noun": "frog"},
                {"sound": "Meow, meow", "who": "a small gray cat with wet fur", "noun": "cat"},
            )
        },
        story="""{hero} [was lying in bed|could not sleep]. Then {hero:he} heard a noise. "<noise.sound>!" [What could
        it be?|{hero:His} heart beat fast.|It came from outside.]

        ["Is it a monster?"|"Is it a ghost?"] whispered {hero}. {hero:He} [hid under the blanket|closed {hero:his}
        eyes], but the noise did not stop. "<noise.sound>!" {hero} [counted to ten|took a deep breath]. ["I must be
        brave,"|"I will be brave,"] {hero:he} said. {hero:He} lit a [candle|small lantern] and [tiptoed|walked slowly]
        to the door.

        {hero} opened it just a little. There was no monster at all. There on the step sat <noise.who>! ["I am lost and
        cold,"|"I saw your light, and I am so lonely,"|"I cannot find my way home in the dark,"] said the <noise.noun>.
        {hero} <laughed>. ["So it was you!"|"You gave me a fright!"] {hero:he} said. "Come in and get warm."

        {hero} gave the <noise.noun> [a cup of warm milk|a bowl of warm soup|{food:a}], and they told each other
        stories until [they both fell asleep|the sun came up|the moon went down].

        After that night, {hero} was not afraid of the dark anymore. When {hero:he} heard a noise, {hero:he} smiled and
        thought, ["Maybe it is a new friend."|"That is only my friend, the <noise.noun>."]""",
    ),
    "all for me": Plot(
        weathers=NO_SNOW,
        story="""{elder} [baked|made] {food:a} for {hero}. [It smelled wonderful.|It was still warm.|It smelled so good
        that {hero:his} nose twitched.] ["I will eat it all by myself,"|"This is all for me,"] said {hero}, and
        {hero:he} hid behind [the shed|a hedge|a big tree|the wall].

        Soon {hero:his} friend {friend:full} came by. "What smells so good?" asked {friend}. "Nothing," said {hero},
        and {hero:he} put the {food:noun} behind {hero:his} back. {friend} [looked down at the ground|was quiet for a
        moment] and went away [slowly|without a word].

        {hero} took a bite, but [it did not taste good anymore|it did not taste as sweet as it smelled]. {hero:He}
        thought of {friend} and felt <sad>. ["It is no fun to eat alone,"|"That was not kind of me,"] {hero:he} said.
        {hero:He} jumped up and ran after {friend}.

        ["Wait!"|"Come back!"] called {hero}. "I am sorry. I did not want to share, [and that was wrong|but now I do].
        Half of my {food} is for you." {friend} smiled from ear to ear. They sat down {place_a:at} and ate the
        {food:noun} together. [It was the best {food:noun} in the whole world.|Now it tasted wonderful.|Every bite
        tasted better than the last.]

        [The next day, {friend} brought {food_b:a}, and half of it was for {hero}.|After that, {hero} never wanted to
        eat alone again.|"Sharing makes everything sweeter," said {hero}.]""",
    ),
    "giant vegetable": Plot(
        weathers=FAIR,
        setup="""In the spring, {hero} had planted a tiny <veg.noun> seed. {hero:He} gave it water every day. [For a
        long time nothing happened, but {hero:he} did not give up.|"Grow, little seed," {hero:he} said.] The <veg.noun>
        grew and grew, until it was as big as [a barrel|a cart|a table].""",
        slots={
            "veg": ({"noun": "turnip"}, {"noun": "carrot"}, {"noun": "radish"}, {"noun": "beet"}, {"noun": "parsnip"})
        },
        story="""{hero} went to pull the <veg.noun> out of the ground. {hero:He} pulled with all {hero:his} might, but
        the <veg.noun> did not move. "I need help," said {hero}.

        [First|So] {hero:he} called {friend:full}. {hero} pulled the <veg.noun>, and {friend} pulled {hero}. They
        pulled and pulled, but the <veg.noun> [did not move|stayed where it was|only wobbled a little]. Then they
        called {helper:the_kind}. {helper:The} pulled {friend}, {friend} pulled {hero}, and {hero} pulled the
        <veg.noun>. [Still it did not move.|It moved a little, but it did not come out.]

        <suddenly> a tiny [beetle|ant|ladybug|cricket] [came by|looked up]. "Can I help?" it asked. ["You are so
        small," said {friend}.|{friend} <laughed>.] ["Everyone can help," said {hero}.|"Every bit helps," said {hero}.]
        So they all pulled together. One, two, three, pop! Out came the <veg.noun>, and they all fell down in a heap.

        They cooked a huge pot of <veg.noun> soup, and there was [enough for the whole village|a bowl for everyone].
        [The tiny helper got the very first spoonful.|"It was the smallest one who made the difference," said
        {helper:the}.|]""",
    ),
    "the race": Plot(
        weathers=DRY,
        setup="[{hero} was not the fastest runner, but {hero:he} loved to run.|{hero} loved to run.]",
        story="""{hero} went to the village, where there was a big race. ["I am the fastest of all,"|"Nobody can beat
        me,"] said {friend:full}. ["You will only see my back!"|"I will win, and everyone will cheer for me!"] {hero}
        said nothing. {hero:He} [only wanted to do {hero:his} best|tied a {color} ribbon around {hero:his} neck for
        luck].

        "One, two, three, go!" [called|shouted] {helper:the_kind}. {friend} shot ahead like an arrow. {hero} ran past
        {place_a} and past {place_b}, [as fast as {hero:he} could|and {hero:his} heart beat like a drum].

        Then, near {place_c}, {hero} heard a cry. {friend} had [fallen into a muddy ditch and could not get out|tripped
        over a root and could not get up|run into a thorn bush and could not get out]. [The others ran past.|Nobody
        else stopped.] {hero} could see the end of the race, but {hero:he} stopped. "Let me help you," said {hero}, and
        {hero:he} pulled {friend} to the path.

        ["Why did you stop? You could have won," said {friend}.|"But now you will not win," said {friend}.] ["A friend
        is worth more than a ribbon,"|"I would rather have a friend than a prize,"] said {hero}. {friend} leaned on
        {hero}, and together they crossed the line, the very last of all.

        [Everyone cheered louder for them than for the winner.|{helper:The} gave them a prize for the kindest runners.]
        "I am sorry that I boasted," said {friend}. [From that day on, the two of them always ran side by side.|After
        the race, they shared {food:a}.]""",
    ),
    "telling the truth": Plot(
        slots={
            "item": (
                {
                    "noun": "teapot",
                    "accident": "It slipped and fell to the floor with a crash.",
                    "mend": "They glued the pieces together, one by one.",
                },
                {
                    "noun": "kite",
                    "accident": "It caught on a nail and tore from top to bottom.",
                    "mend": "They patched it with paper and paste.",
                },
                {
                    "noun": "drum",
                    "accident": "{hero:He} hit it too hard, and the drum tore.",
                    "mend": "They stretched a new piece of cloth over it.",
                },
                {
                    "noun": "toy boat",
                    "accident": "It fell from the table, and the mast broke off.",
                    "mend": "They carved a new mast from a stick.",
                },
                {
                    "noun": "cart",
                    "accident": "{hero:He} pushed it too hard, and a wheel came off.",
                    "mend": "They put the wheel back with a hammer and two nails.",
                },
                {
                    "noun": "music box",
                    "accident": "{hero:He} turned the key too far, and the music stopped.",
                    "mend": "They opened it and put the little spring back in its place.",
                },
                {
                    "noun": "vase",
                    "accident": "It tipped over and broke into three pieces.",
                    "mend": "They glued the three pieces together.",
                },
            )
        },
        story="""{hero} went to visit {hero:his} friend {friend:full}. On the table stood a [beautiful|lovely|new]
        {color} <item.noun>. ["Please be careful with it," said {friend}, and went to get some milk.|{friend} went to
        the kitchen to get some milk.] {hero} wanted to look at the <item.noun>, so {hero:he} [picked it up|took it
        down]. <item.accident>

        {hero} was scared. {hero:He} quickly hid the <item.noun> under [a rug|the bed|a blanket|a chair]. When {friend}
        came back and asked, "Where is my <item.noun>?" {hero} said, "I do not know." [{hero:His} cheeks felt
        hot.|{hero:His} voice was very small.]

        At home, {hero} could not [eat {hero:his} supper|play|sleep]. "What is the matter?" asked {elder}. {hero} told
        {elder:him} everything. ["The truth is hard to say, but it makes your heart light,"|"Everyone breaks things
        sometimes. What matters is that we tell the truth,"] said {elder}.

        So {hero} ran back to {friend}. "I broke your <item.noun>, and I hid it," {hero:he} said. ["I am so sorry."|"I
        am very sorry."] {friend} was quiet for a moment. ["Thank you for telling me the truth,"|"I am sad, but I am
        glad that you told me,"] {friend} said. "Let us mend it together." <item.mend> [It looked almost as good as
        new.|It looked even better than before.]

        [{hero} felt as light as a feather.|Now {hero} could smile again.|And the two of them were even better friends
        than before.]""",
    ),
    "the broken bridge": Plot(
        weathers=DRY,
        hero_kinds=LAND_KINDS,
        friend_kinds=LAND_KINDS,
        story="""{hero} and {hero:his} friend {friend:full} [were on their way to {elder}|wanted to bring {elder}
        {food:a}]. But when they came to the stream, the bridge was gone! The storm had washed it away in the night.
        ["How will we get across?" asked {friend}.|The water was wild and brown.|"Oh dear!" said {friend}.]

        TRY[they tried to jump across, but the stream was too wide. |they laid a thin branch over the water, but it
        broke [in two|with a snap]. |they made a pile of mud, but the water carried it away. |they tried to walk
        through the water, but it was too cold and too fast. |they sat on a floating log, but it rolled over and they
        got wet.] ["We will never get there," said {friend}.|{friend} sat down and sighed.]

        {helper:A_kind} was watching them. ["One stone is only a stone,"|"A little stone is not much,"] said
        {helper:the}, "but many stones make a bridge." So {hero} [carried|rolled] a big stone to the stream, and
        {friend} [carried|rolled] another one. {helper:The} helped too. [Soon other neighbors came, and everyone
        brought a stone.|Stone by stone, the bridge grew longer.] When the sun was low, the new bridge was ready, [and
        it was stronger than the old one|and it was wide and strong].

        {hero} and {friend} walked across, [step by step|side by side]. On the other side stood {elder}, who [clapped
        and cheered|gave them both <hug>]. [They all ate {food_b:a} on the new bridge.|"You built it together," said
        {elder}, "and that is why it is so strong."]""",
    ),
    "soup for a friend": Plot(
        weathers=ANY_DAY,
        slots={"soup": tuple({"name": f"{kind} soup"} for kind in ("carrot", "pumpkin", "mushroom", "potato", "bean"))},
        story="""{hero} heard that {hero:his} friend {friend:full} was sick in bed. ["Poor {friend}! I will bring some
        warm soup,"|"Warm soup will help,"] said {hero}. {hero:He} cooked a pot of <soup.name>, put on {hero:his}
        {color} scarf and set off.

        On the way, {hero:he} met {helper:a_kind}, who was [cold and hungry|tired and hungry]. ["That smells so
        good,"|"I have not eaten all day,"] said {helper:the}. {hero} looked at the pot. It was not a big pot. But
        {hero:he} could not walk past. {hero:He} gave {helper:the} [a bowl of soup|a big bowl of soup]. <thanks> said
        {helper:the}.

        When {hero} came to {friend}, the pot was only half full. "I am sorry that there is so little," {hero:he} said.
        ["It is just enough,"|"It is perfect,"] said {friend}, and ate every drop. [{hero} sat by the bed and told
        funny stories.|{hero} sang a little song to make {friend:him} smile.]

        <suddenly> there was a knock at the door. There stood {helper:the} with [a jar of honey|a bag of tea|a basket
        of apples]. "You were kind to me," said {helper:the}, "and now I want to be kind too." [They all sat together
        until it was dark.|Soon the room was full of laughter.]

        [The next morning|Two days later], {friend} was well again. [Kindness had come back, just like an echo.|"It was
        the best soup ever," {friend:he} said.|"It was the soup," said {friend}, "and the company."]""",
    ),
    "the birthday cake": Plot(
        weathers=NO_SNOW,
        slots={
            "giver": (
                {"missing": "honey", "who": "the bees", "ask": "water our flowers", "done": "watered all the flowers"},
                {"missing": "milk", "who": "the old cow", "ask": "brush my back", "done": "brushed her back"},
                {"missing": "flour", "who": "the miller", "ask": "sweep the floor", "done": "swept the whole floor"},
                {"missing": "butter", "who": "the farmer", "ask": "feed the hens", "done": "fed all the hens"},
                {"missing": "apples", "who": "the gardener", "ask": "rake the leaves", "done": "raked all the leaves"},
                {"missing": "sugar", "who": "the baker", "ask": "wash the pots", "done": "washed all the pots"},
            )
        },
        story="""{hero} was in a hurry. It was {friend}'s birthday! {friend:Full} was {hero}'s best friend, and {hero}
        wanted to bake a cake for {friend:him}. {hero:He} put on an apron and looked in the cupboard. ["Oh no! There is
        no <giver.missing>!"|"Oh dear! We have no <giver.missing>!"] {hero:he} cried. [A cake without <giver.missing>
        is not a cake.|]

        So {hero} went to <giver.who>. "May I have some <giver.missing>, please?" {hero:he} asked. "Yes, if you will
        first <giver.ask>," said <giver.who>. {hero} worked hard and <giver.done>. Then {hero:he} got [a big jar|a
        little bag|a whole basket] of <giver.missing>.

        On the way home, {hero} [slipped on a wet stone|tripped over a root] and [dropped everything|fell flat on
        {hero:his} nose]. Half of the <giver.missing> was gone! ["Now the cake will be small,"|"It is not enough for a
        big cake,"] said {hero}, [but {hero:he} did not give up|and wiped away a tear].

        {hero} baked a very small cake and put one {color} candle on top. When {friend} opened the door, {hero} called,
        "Happy birthday!" {friend} looked at the little cake. "It is [lovely|perfect]," {friend:he} said. ["Nobody has
        ever baked a cake for me before."|"You made it just for me!"]

        They cut the cake in two, and [it was the best cake they had ever tasted|every crumb was sweet]. [A small gift
        from the heart is a big gift.|"The smallest cake can hold the most love," said {elder}.|]""",
    ),
    "the new neighbor": Plot(
        weathers=DRY,
        slots={
            "gift": (
                {
                    "skill": "play the flute",
                    "doing": "playing the flute",
                    "show": "played a tune that made everyone dance",
                },
                {"skill": "paint", "doing": "painting", "show": "painted a rainbow on the garden wall"},
                {"skill": "juggle", "doing": "juggling", "show": "juggled five apples at once"},
                {"skill": "tell stories", "doing": "telling stories", "show": "told a story that nobody wanted to end"},
                {"skill": "sing", "doing": "singing", "show": "sang so sweetly that even the birds were quiet"},
                {"skill": "fly kites", "doing": "flying kites", "show": "flew a kite higher than the church tower"},
            )
        },
        story="""{hero} saw a cart full of [chairs and tables|boxes and beds] in front of the house next door. [A new
        neighbor had come!|Somebody new was moving in!] It was {friend:a_kind} named {friend}. {friend:He} was very
        shy. When the others played {place_a:at}, {friend} only [watched from behind a tree|looked through a hole in
        the fence]. [Nobody asked {friend:him} to play.|The others did not see {friend:him}.]

        But {hero} saw {friend:him}. ["It must be hard to be new,"|"{friend} must be lonely,"] {hero:he} thought. So
        {hero} [knocked on the door|went over] with {food:a}. "Hello! I am {hero}. Would you like to play with us?"
        {friend} looked at the ground. ["I am not good at games,"|"I cannot run very fast,"] {friend:he} whispered.

        ["What do you like to do?"|"What makes you happy?"] asked {hero}. {friend} <thought>. "I like to <gift.skill>,"
        {friend:he} said. "That is [wonderful|great]!" said {hero}. ["Please show us!"|"Will you show us?"]

        {hero} took {friend} to the others. At first {friend:his} knees were shaking. Then {friend} <gift.show>.
        ["Again, again!" they all shouted.|Everyone clapped and cheered.] {friend} smiled for the first time since
        {friend:he} had come.

        After that, {friend} was never alone. [Every afternoon, you could see {friend:him} <gift.doing>, with {hero} at
        {friend:his} side.|And {friend:he} taught {hero} how to <gift.skill>, too.]""",
    ),
    "bird in the snow": Plot(
        weathers=("snowy", "cold"),
        story="""{hero} put on {hero:his} {color} scarf and went outside. <suddenly> {hero:he} saw something small in
        the snow. It was a little [bird|sparrow|finch]! [Its wing was hurt, and it could not fly.|It was too weak to
        fly, because its wing was hurt.] ["Poor little thing,"|"Oh, you are so cold,"] said {hero}.

        {hero} wrapped the bird in {hero:his} scarf and carried it home. {elder} [tied a soft cloth around|put a
        bandage on] the wing, and {hero} made a nest out of [wool|straw|an old hat]. [Every day,|All winter long,]
        {hero:he} gave the bird [seeds|crumbs|warm water and seeds] and [talked to it|sang to it].

        At first the bird was afraid. [Then it began to eat.|Then it sat on {hero:his} shoulder.] Little by little, it
        grew strong. When the snow melted, the bird [flapped its wings|hopped to the window] and looked at the sky.
        {hero} felt a lump in {hero:his} throat. "I will miss you," {hero:he} said, "but [the sky is your home|you must
        be free]." {hero:He} opened the window, and the bird flew away.

        [Days went by.|Weeks went by.] One morning, {hero} heard a song at the window. There was the bird, and [in its
        beak it held a {color} flower|it was not alone: it had brought its whole family]! [{hero} <laughed> and
        waved.|"You came back!" cried {hero}.] [Every spring after that, the bird came back to sing for
        {hero:him}.|Love always finds the way back.]""",
    ),
    "the wish": Plot(
        at_night=True,
        weathers=("starry", "clear", "quiet"),
        setup="More than anything, {hero} wanted a <want.noun>. [{hero:He} dreamed of it every night.|]",
        slots={
            "want": (
                {"noun": "bicycle"},
                {"noun": "pair of skates"},
                {"noun": "sled"},
                {"noun": "violin"},
                {"noun": "telescope"},
                {"noun": "box of paints"},
                {"noun": "rocking horse"},
            ),
            "need": (
                {"trouble": "was sick and could not get up", "wish": "get well", "granted": "was well again"},
                {
                    "trouble": "had lost the way and was not home yet",
                    "wish": "come home",
                    "granted": "was safe at home",
                },
                {
                    "trouble": "had no friends in the new school",
                    "wish": "find a friend",
                    "granted": "had found a friend",
                },
                {"trouble": "was so sad that nothing helped", "wish": "smile again", "granted": "was smiling again"},
            ),
        },
        story="""{hero} [sat by the window|sat on the step] and looked at the sky. <suddenly> a [bright star|golden
        star] fell from the sky and landed [in the garden|in the grass]. {hero} ran to it. "You have found me," said
        the star, "so you may make one wish. [But only one!|Think well!]"

        {hero}'s heart jumped. "I wish for," {hero:he} began, but then {hero:he} stopped. {hero:He} thought of
        {friend:full}. {friend} <need.trouble>. [{hero} was quiet for a long time.|{hero} looked at the star, and then
        at {friend}'s dark window.]

        ["I do not need a <want.noun>,"|"The <want.noun> can wait,"] {hero} said at last. "I wish that {friend} will
        <need.wish>." The star [glowed as bright as the sun|shone in every color]. ["That is a good wish,"|"You have a
        good heart,"] it said, and it flew back into the sky.

        The next morning, {friend} <need.granted>! {hero} was <glad>. [And beside {hero:his} door stood a <want.noun>,
        with a little card. "Good wishes shine twice," it said.|And although {hero:he} had no <want.noun>, {hero:he}
        felt like the luckiest {hero:kind} in the world.]""",
    ),
    "learning something new": Plot(
        weathers=FAIR,
        slots={
            "skill": (
                {
                    "verb": "whistle",
                    "fails": "[only air came out.|it sounded like an old kettle.|the birds flew away in fright.]",
                    "tip": "Make your lips round and blow softly",
                    "success": "out came a clear, sweet whistle",
                },
                {
                    "verb": "jump rope",
                    "fails": "the rope [got caught on one foot.|hit {hero:him} on the nose.|tied a knot.]",
                    "tip": "Listen to the rope and jump when it sings",
                    "success": "{hero:he} jumped ten times without a stop",
                },
                {
                    "verb": "stand on one leg",
                    "fails": "[{hero:he} tipped over.|{hero:he} wobbled like jelly.|{hero:he} fell into the flowers.]",
                    "tip": "Look at one thing far away and do not move your eyes",
                    "success": "{hero:he} stood as still as a tree",
                },
                {
                    "verb": "ride a bicycle",
                    "fails": "[it rolled into a bush.|it tipped over.|it went around in a circle.]",
                    "tip": "Look ahead, not down, and keep going",
                    "success": "the wheels went straight down the road",
                },
                {
                    "verb": "juggle",
                    "fails": "[all the apples fell down.|one apple rolled away.|an apple landed on {hero:his} head.]",
                    "tip": "Start with two apples before you take three",
                    "success": "three apples flew through the air",
                },
                {
                    "verb": "dance",
                    "fails": "{hero:he} [stepped on {hero:his} own toes.|bumped into a tree.|sat down hard.]",
                    "tip": "Close your eyes and listen to the music first",
                    "success": "{hero:he} danced as lightly as a leaf",
                },
            )
        },
        story="""{hero} wanted to learn how to <skill.verb>. {friend:Full} could do it, and it looked so easy! {hero}
        tried, but <skill.fails> {hero:He} tried again, but <skill.fails> [Some of the others laughed.|"This is too
        hard," said {hero}.]

        {hero} [sat down in the grass|kicked a stone]. ["I will never learn it," {hero:he} said.|"Everyone can do it
        but me," {hero:he} said.] {friend} sat down beside {hero:him}. ["I fell down a hundred times before I learned
        it,"|"I could not do it at first either,"] said {friend}. "<skill.tip>."

        So {hero} practiced. {hero:He} practiced {place_a:at} and {place_b:at}. {hero:He} practiced [in the morning and
        in the evening|in the sun and in the rain]. [Some days were bad, and some days were better.|Every day it went a
        little better.]

        And one day, it happened: <skill.success>! ["I did it! I did it!" cried {hero}.|"Look at me!" cried {hero}.]
        {friend} clapped and cheered. ["I knew you could do it," {friend:he} said.|"You never gave up," said {friend}.]

        [Soon after, {hero} met {other:a_kind} who wanted to <skill.verb> too. "<skill.tip>," said {hero} with a
        smile.|Now, when something is hard, {hero} says, "I cannot do it yet."]""",
    ),
    "the treasure map": Plot(
        weathers=DRY,
        slots={
            "treasure": (
                {
                    "what": "a bag of seeds",
                    "shared": "They planted the seeds, and in summer the whole village was full of flowers.",
                },
                {
                    "what": "a pile of old storybooks",
                    "shared": "Every evening, they read one of the stories to all of their friends.",
                },
                {
                    "what": "a set of little bells",
                    "shared": "They gave one bell to each friend, and together they made music.",
                },
                {
                    "what": "a box of gold coins",
                    "shared": "They used the coins to build a playground for everyone.",
                },
                {
                    "what": "a big round mirror",
                    "shared": '"Look," said {friend}, "the treasure is us!" And they laughed until they cried.',
                },
            )
        },
        story="""{hero} and {hero:his} friend {friend:full} were playing {place_a:at} when they found [a bottle|an old
        bottle|a tin box]. There was a piece of paper in it. "It is a map!" cried {friend}. [On it was a big red
        cross.|"A treasure map!"]

        "[First|First of all], go to {place_b}," {hero} read. So they [ran|went] to {place_b}, and there they found an
        arrow made of [stones|sticks|shells]. It pointed to {place_c}. Near {place_c} they [saw|found] a tree with a
        {color} mark. ["Take ten steps to the left," said the map.|"Dig under the tree," said the map.]

        They [dug and dug|dug a deep hole], but they found only [stones|<junk>]. ["Somebody has taken the treasure,"
        said {friend}.|"There is nothing here," said {friend}, and sat down.] But {hero} turned the map around.
        "[Wait!|Look!] We held it upside down[!|! The cross is on the other side.]" They <laughed> and dug on the other
        side of the tree.

        [Bump!|Clunk!] There was a wooden chest. {hero} opened it slowly. Inside lay <treasure.what>! ["We found it
        together, so we will share it,"|"This is too good to keep for ourselves,"] said {hero}. <treasure.shared>""",
    ),
    "lost in the fog": Plot(
        weathers=("foggy",),
        setup="""{elder} always said, "If you are lost, <advice.say>." {hero} knew these words by heart.""",
        slots={
            "advice": (
                {
                    "say": "follow the water, for it knows the way",
                    "find": "{hero:He} stood still and listened. There was the sound of a stream!",
                    "follow": "{hero:He} followed the stream",
                },
                {
                    "say": "stand still and listen for the bell",
                    "find": "{hero:He} stood still and listened. Ding, dong! There was the bell of the village!",
                    "follow": "{hero:He} walked toward the sound of the bell",
                },
                {
                    "say": "look for the light in our window",
                    "find": "{hero:He} climbed onto a rock and looked around. Far away there was a tiny light!",
                    "follow": "{hero:He} walked toward the light",
                },
                {
                    "say": "feel for the stone wall and walk along it",
                    "find": "{hero:He} reached out and felt something cold and hard. It was the stone wall!",
                    "follow": "{hero:He} walked along the wall",
                },
            )
        },
        story="""{hero} went out to pick [mushrooms|berries|flowers]. {hero:He} went a little farther, and then a
        little farther still. When {hero:he} looked up, {hero:he} could not see the path. [The fog was all around
        {hero:him}.|Everything was white and gray.]

        ["Which way is home?"|"Where am I?"] said {hero}. TRY[{hero:he} went left, but there were only thorns.
        |{hero:he} went right, but {hero:he} came to a deep ditch.|{hero:he} walked straight ahead, but {hero:he} came
        back to the same old tree.|{hero:he} called for help, but the fog swallowed {hero:his} voice.] {hero} [sat down
        and began to cry|felt very small].

        Then {hero:he} remembered the words of {elder}: "<advice.say>." [{hero:He} wiped away {hero:his} tears.|{hero}
        took a deep breath.] <advice.find> <advice.follow>, step by step, [over roots and stones|past the dark trees],
        [and {hero:he} did not turn around|and {hero:he} was not afraid].

        At last {hero:he} saw the {home:noun}, and {elder} was standing at the door. ["There you are!"|"I was so
        worried!"] cried {elder}. {hero} ran into {elder:his} arms. ["I remembered what you told me,"|"Your words
        brought me home,"] {hero:he} said. [{elder} gave {hero:him} warm milk and {food:a}.|They sat by the fire until
        the fog was gone.]""",
    ),
    "the lonely monster": Plot(
        weathers=DRY,
        setup="""[In a dark cave|In an old tower|On the other side of the hill] lived a <monster.adjective>
        <monster.noun>. Everybody was afraid of [the <monster.noun>|it]. ["Never go there," said {elder}.|Nobody had
        ever talked to it.]""",
        slots={
            "monster": (
                {"noun": "giant", "adjective": "huge", "good": "carry everyone on his shoulders", "his": "his"},
                {"noun": "troll", "adjective": "big green", "good": "lift the heaviest stones", "his": "his"},
                {"noun": "ogre", "adjective": "grumpy", "good": "bake the best bread", "his": "his"},
                {"noun": "wolf", "adjective": "big gray", "good": "sing to the moon", "his": "her"},
                {"noun": "witch", "adjective": "strange old", "good": "make soup out of anything", "his": "her"},
            )
        },
        story="""{hero} was playing with a {color} ball {place_a:at}. The ball rolled away, farther and farther, right
        to the home of the <monster.noun>. {hero}'s knees [shook|trembled], but {hero:he} wanted the ball back. So
        {hero:he} [went on tiptoe|took a deep breath and went in].

        There sat the <monster.noun>, with the ball in <monster.his> lap. A big tear rolled down <monster.his> nose.
        "Why are you crying?" asked {hero}. ["Because nobody ever plays with me,"|"Because everyone runs away from
        me,"] said the <monster.noun>. ["I only look scary."|"I would never hurt anyone."]

        {hero} was not afraid anymore. "[I will play with you|Then play with me]," {hero:he} said. {hero:He} threw the
        ball, and the <monster.noun> caught it. They played [all afternoon|until the sun was low], and the
        <monster.noun> laughed so loudly that [the walls shook|the birds flew up].

        The next day, {hero} brought [{friend:full}|{hero:his} friend {friend:full}] along. At first {friend} hid
        behind {hero}, but soon {friend:he} was laughing too. [Then more and more friends came.|One by one, the others
        came too.] They found out that the <monster.noun> could <monster.good>.

        And the <monster.noun> was never lonely again. [You cannot see a kind heart from far away; you have to come
        close.|"We were wrong about you," said {elder}.|"Do not be afraid of somebody you do not know," {hero} told
        everyone.]""",
    ),
    "the sand castle": Plot(
        weathers=("sunny", "bright", "warm", "windy", "hot"),
        story="""{hero} and {hero:his} friend {friend:full} went to the beach. ["Let us build the biggest castle in the
        world!"|"Let us build a castle for a king!"] said {hero}. They [piled up the sand|dug and dug] and made
        [three|four|five] towers, a gate and a deep moat. On the tallest tower, {friend} put a {color}
        [flag|shell|feather].

        They had just finished when a big wave came. [Splash!|Whoosh!] The wave rolled over the castle, and [all the
        towers fell down|everything was gone]. ["Our castle!" cried {hero}.|{hero} stamped {hero:his} foot.] {friend}
        [looked very sad|began to cry].

        {hero} wanted to go home. But then {hero:he} saw something in the wet sand. The wave had left [hundreds of
        shells|smooth stones and pretty shells|a long piece of wood and many shells]! "[Look|See]," said {hero}, "the
        sea took our castle, but it gave us something back."

        So they began again, [farther away from the water|a little higher up the beach]. TRY[they built a strong
        wall.|they dug a deep moat.|they made a tall tower.|they made a wide gate.] They covered everything with
        shells, until the castle [sparkled in the sun|shone like a treasure].

        [The next wave came, but it only filled the moat.|The next wave came, but it stopped at the wall.] ["This one
        is even better than the first," said {friend}.|"Now it is perfect," said {friend}.] [When something falls down,
        you can always build it again.|]""",
    ),
    "the snowman": Plot(
        weathers=("snowy",),
        story="""{hero} and {hero:his} friend {friend:full} built a big snowman. {hero} made the round belly, and
        {friend} made the head. [It had two arms made of sticks.|They used two black stones for eyes.] But it had no
        nose. ["A snowman needs a nose," said {friend}.|"He cannot smell the snow," said {hero}.]

        They looked for a nose. TRY[they tried a pine cone, but it was too dark.|they tried a stone, but it was too
        heavy and fell down.|they tried an icicle, but it broke.|they tried a feather, but the wind blew it away.] Then
        {helper:a_kind} {helper:came} with a [big orange carrot|long carrot]. "I was going to eat it," said
        {helper:the}, "but [he needs it more than I do|it will look very good on him]."

        Now the snowman was perfect. {hero} put {hero:his} own {color} hat on its head, and they all danced around it.
        [That night, {hero} looked out of the window and thought that the snowman winked.|They gave it the name Mister
        Winter.]

        But then the sun came, and every day the snowman grew smaller. At last there was only the hat, the carrot and
        [a puddle|some water]. {hero} was <sad>. ["He is not gone forever," said {elder}.|"Do not cry," said {elder}.]
        "[The water goes up to the clouds, and next winter it comes back as snow|When it snows again, you will see him
        again]."

        So {hero} kept the hat in a safe place. [And when the first snow fell the next winter, {hero} and {friend} ran
        outside with the {color} hat.|The next winter, the snowman had the very same {color} hat.] ["Welcome back!"
        they said.|]""",
    ),
    "the moon in the water": Plot(
        at_night=True,
        weathers=("clear", "starry", "quiet"),
        story="""{hero} was walking [by the pond|by the lake|along the river] with {hero:his} friend {friend:full}.
        [They looked into the water.|They stopped to look at the water.] There, in the water, was the moon! ["The moon
        has fallen in!"|"Oh no! The moon has fallen into the water!"] cried {hero}. ["We must save it," said
        {friend}.|"How dark the nights will be!" said {friend}.]

        TRY[they tried to catch the moon with a net, but the net came up empty.|they tried to scoop it up with a
        bucket, but there was only water in the bucket.|they threw a rope to the moon, but the moon did not hold
        on.|they reached for the moon with a long stick, but the moon broke into a hundred pieces of light.] ["It does
        not want to come out," said {hero}.|"It must be very heavy," said {friend}.]

        {hero} leaned forward, [a little more, and a little more|more and more], and then, splash! {hero:He} fell into
        the water. {friend} pulled {hero:him} out [by the arm|with all {friend:his} strength]. As {hero} lay on
        {hero:his} back in the grass, {hero:he} saw something bright, high up in the sky. "Look!" {hero:he} cried. "The
        moon is back in the sky! [We saved it!|I must have pushed it up!]"

        {helper:A_kind} had watched it all. ["The moon was never in the water,"|"That was only the picture of the
        moon,"] said {helper:the} with a smile. "[Water is like a mirror.|The water shows you what is above.]" {hero}
        and {friend} looked at the water, and then at the sky, and they <laughed>. [All the way home, the moon went
        with them.|"Good night, two moons!" they called.]""",
    ),
    "the song that was laughed at": Plot(
        weathers=DRY,
        setup="""{hero} loved to sing, but {hero:his} voice was very [loud|deep|strange]. ["Please stop," the others
        said.|The others covered their ears and laughed.] So {hero} sang only when {hero:he} was alone.""",
        story="""{hero} heard that {friend:full} had not come home. {friend:He} had gone to pick
        [berries|mushrooms|nuts], and now a thick fog lay over [the woods|the hills|the fields]. [Everybody went out to
        look for {friend:him}.|{helper:The_kind} told everyone to help.]

        TRY[they called {friend}'s name, but the fog swallowed it.|they lit a lantern, but nobody could see it.|they
        rang a little bell, but it was not loud enough.|they looked for footprints, but there were none.] ["What shall
        we do?" asked {helper:the}.|It was getting late, and everyone was worried.]

        Then {hero} had an idea. [{hero:His} cheeks were hot, but {hero:he} opened {hero:his} mouth|{hero:He} climbed
        onto a big stone, took a deep breath] and sang. {hero:He} sang [as loudly as {hero:he} could|{hero:his} loudest
        song]. The song went over the hills and through the fog. [This time, nobody laughed.|Nobody covered their
        ears.]

        Far away, {friend} heard it. ["That is {hero}!" {friend:he} said.|"I know that voice!" {friend:he} said.]
        {friend:He} followed the song, step by step, until {friend:he} saw {hero} on the other side of the fog. ["You
        sang me home!" cried {friend}.|"Your song showed me the way!" cried {friend}.]

        ["We are sorry that we laughed," said the others.|"We were wrong to laugh," said {helper:the}.] After that,
        {hero} sang every evening, and everyone [sang along|listened]. [Your own voice may be just the one that
        somebody needs.|]""",
    ),
    "the dry well": Plot(
        weathers=("hot", "sunny", "bright"),
        setup="It had not rained for [many weeks|a long time]. The flowers [hung their heads|were brown].",
        slots={"sprout": ({"noun": "leaf"}, {"noun": "fern"}, {"noun": "plant"}, {"noun": "flower"})},
        story="""{hero} went to the well to get some water, but the bucket came up empty. The well was dry! ["What will
        we drink?" asked {friend:full}.|"What will become of us?" asked {friend:full}.] Everyone was thirsty[, and
        nobody knew what to do|].

        {hero} wanted to find water. TRY[{hero:he} went to the [pond|meadow], but the ground there was dry and
        hard.|{hero:he} dug a hole in the [garden|orchard], but there was only dust.|{hero:he} asked the clouds for
        rain, but they floated away.|{hero:he} looked under the biggest stone, but there was only a thirsty beetle.]
        [The others shook their heads. "It is no use," they said.|"Come home," said {friend}. "There is no water."]

        But {hero} did not give up. In the shade of a [rock|fallen tree], {hero:he} saw one small green <sprout.noun>.
        "How can it be so green?" {hero} wondered. "[It must have found water|There must be water here]!" {hero:He}
        began to dig. {friend} came to help, and then {helper:the_kind} came too. They dug deeper and deeper, [until
        the ground was cool|until the ground was wet].

        [Splash!|Bubble, bubble!] Clear, cold water came out of the ground. ["Water! Water!" they all shouted.|Everyone
        drank until they were full.] They [drank|danced] and splashed and <laughed>. {helper:The} said, "We all walked
        past that little <sprout.noun>, but only {hero} looked at it closely." [They called the new spring {hero}'s
        Spring.|And the little <sprout.noun> got the very first drink.]""",
    ),
    "one trick too many": Plot(
        weathers=NO_SNOW,
        setup="""{hero} loved to play tricks. [Nobody was safe from {hero:his} jokes.|{hero:He} thought that tricks
        were the best thing in the world.]""",
        story="""{hero} had an idea. "Help! [I have fallen into the well|I am stuck in the mud|There is a wolf in the
        barn]!" {hero:he} shouted. {friend:Full} dropped everything and came running. {hero} <laughed>. ["It was only a
        trick!"|"I fooled you!"] {hero:he} said. {friend} [was not happy|did not laugh].

        [A little later|In the afternoon], {hero} did it again. "Help! Help!" {hero:he} cried. Again {friend} came
        running, and again it was only a trick. ["One day nobody will believe you," said {friend}.|"That is not funny,"
        said {friend}, and went home.] But {hero} only laughed.

        Then {hero} [climbed onto|walked along] an old wall. A stone came loose, and {hero:he} [slid down into a deep
        ditch|fell into a thorn bush]. {hero:He} could not get out. "Help! Help!" {hero:he} cried, and this time it was
        no trick. [But nobody came.|But everyone thought that it was another joke.] {hero} called until {hero:his}
        voice was only a whisper. ["I will never trick anyone again," {hero:he} thought.|Now {hero:he} understood why
        {friend} had been angry.]

        <at_last> {friend} [came by to see if {hero} was all right|heard the small voice]. "Is it a trick?" asked
        {friend}. "No," said {hero}, "and I am sorry." {friend} threw down a rope and pulled {hero:him} out. [They
        walked home together.|"I came just in case," said {friend}.]

        From then on, {hero} told the truth, and when {hero:he} called, [everyone came|somebody always came].
        [{hero:He} still told jokes, but only the kind that made everybody laugh.|]""",
    ),
    "too small to help": Plot(
        weathers=NO_SNOW,
        hero_kinds=TINY_KINDS,
        friend_kinds=LARGER_KINDS,
        setup="""{hero} was the smallest of all {hero:his} friends. ["You are too small," the others always said.|"You
        are too small to help," everyone told {hero:him}.]""",
        slots={
            "trouble": (
                {
                    "what": "The key of the mill had fallen through a crack in the floor.",
                    "goal": "the key",
                    "place": "under the floor",
                },
                {
                    "what": "{elder}'s golden ring had rolled into a hole in the wall.",
                    "goal": "the ring",
                    "place": "into the dark hole",
                },
                {
                    "what": "A little chick was stuck at the end of a narrow pipe.",
                    "goal": "the chick",
                    "place": "into the narrow pipe",
                },
                {
                    "what": "The door of the school was locked, and the key was inside.",
                    "goal": "the key",
                    "place": "through the tiny window",
                },
                {
                    "what": "The bell of the village had lost its little clapper behind a beam.",
                    "goal": "the clapper",
                    "place": "behind the beam",
                },
            )
        },
        story="""{hero} saw a crowd and ran to look. <trouble.what> ["What shall we do?" asked
        {helper:the_kind}.|Everyone talked at the same time.] ["Can I help?" asked {hero}. "You are too small," they
        said.|"Let me try," said {hero}, but nobody listened.]

        TRY[{friend:full} reached for <trouble.goal>, but it was too far away.|{helper:the_kind} tried with a long
        stick, but the stick got stuck.|they tried with a hook on a string, but the string broke.|they pushed and
        pulled at the stones, but nothing moved.] ["It is no use," said {friend}.|They all scratched their heads.]

        "[I am small enough|I can do it]," said {hero}. {hero:He} took a deep breath and crawled <trouble.place>. It
        was dark and dusty there, and [a spider looked at {hero:him} with all its eyes|{hero:his} heart beat fast]. But
        {hero} crawled on, a little farther, and a little farther. Then {hero:he} [felt|touched] something. ["I have
        it!" {hero:he} called.|It was <trouble.goal>!]

        When {hero} came out with <trouble.goal>, [{hero:he} was gray with dust from head to toe|there was a spider web
        on {hero:his} nose]. Everyone cheered, and {friend} lifted {hero:him} high into the air. ["You were not too
        small," said {friend}. "You were just the right size!"|"None of us could have done it," said {helper:the}.]

        [Nobody ever said that {hero} was too small again.|That evening, {hero} felt as tall as a tree.]""",
    ),
    # The plots from here on are short.
    "the paper boat": Plot(
        weathers=("rainy",),
        story="""{hero} could not go out to play. ["I am so bored," said {hero}.|"It will never stop," said {hero}.]
        {elder} smiled and took a sheet of {color} paper. {elder:He} folded it once, {elder:he} folded it twice, and
        there was a little boat!

        {hero} wanted to make one too. [The first one looked like a hat.|The first one looked like a potato.] The
        second one [fell apart|had a hole]. But the third one was a real boat. ["It needs a captain," said
        {elder}.|"Now it needs the sea," said {elder}.]

        When the rain was over, they put their boats on the biggest puddle. [The wind blew, and off they went!|They
        blew as hard as they could, and off they went!] {hero}'s boat [won by a nose|sailed all the way to the other
        side]. ["I hope that it rains again tomorrow!" said {hero}.|"Rain is not so bad after all," said {hero}.]""",
    ),
    "a present": Plot(
        weathers=DRY,
        slots={
            "present": (
                {"first": "a pretty stone", "mishap": "it rolled into the river"},
                {"first": "a big red apple", "mishap": "a hungry worm had already eaten half of it"},
                {"first": "a lovely flower", "mishap": "the wind took it away"},
                {"first": "a golden leaf", "mishap": "it broke into little pieces"},
                {"first": "a snow-white feather", "mishap": "a bird needed it for her nest"},
            )
        },
        story="""{hero} wanted to give {elder} a birthday present, but {hero:he} had no money. [{hero:He} looked
        {place_a:search}.|{hero:He} went to {place_a} to look for something.] There {hero:he} found <present.first>!
        But on the way home, <present.mishap>. [{hero} was <sad>.|"Now I have nothing," said {hero}.]

        {hero} <thought>. Then {hero:he} [drew a picture of {elder}|made up a song about {elder}|wrote a poem about
        {elder}]. {hero:He} [worked on it all afternoon|worked until the sun went down].

        "Happy birthday!" said {hero}. ["I have no real present. I only made this."|"It is only a small thing."]
        {elder} had tears in {elder:his} eyes. ["It is the best present I ever got,"|"Nobody else could have given me
        this,"] said {elder}, and gave {hero:him} <hug>.""",
    ),
    "cannot sleep": Plot(
        at_night=True,
        weathers=NIGHT,
        story="""{hero} could not sleep. TRY[{hero:he} counted sheep, but the sheep began to dance.|{hero:he} turned
        the pillow over, but the other side was just the same.|{hero:he} drank a cup of warm milk, but {hero:he} was
        still awake.|{hero:he} lay on {hero:his} back and then on {hero:his} belly, but nothing helped.|{hero:he} sang
        a lullaby, but it only made {hero:him} hungry.]

        ["Why are you still awake?"|"Can you not sleep?"] asked {elder}. ["My head is full of thoughts," said
        {hero}.|"I am afraid that I will miss something," said {hero}.] {elder} sat down beside the bed. "Then tell me
        the best thing that happened today," {elder:he} said.

        {hero} began to tell about [a butterfly|a rainbow|a funny cloud|a bird's nest] {hero:he} had seen {place_a:at}
        and about [a game|a walk|a picnic] with {friend:full}. [But {hero} did not get to the end.|Then it was very
        quiet.] {hero:He} was fast asleep. ["Sweet dreams," whispered {elder}.|{elder} blew out the candle.]""",
    ),
    "the shadow": Plot(
        weathers=("sunny", "bright", "warm", "hot"),
        story="""{hero} was walking to {place_a} when {hero:he} saw something dark on the ground behind {hero:him}.
        [{hero:He} ran, and it ran too.|{hero:He} stopped, and it stopped too.] {hero:He} jumped, and it jumped too!
        ["Somebody is following me!"|"Go away!"] cried {hero}.

        {hero:He} hid behind a tree, and the dark thing was gone. But as soon as {hero:he} came out, there it was
        again. [{hero}'s heart beat fast.|"What do you want from me?" {hero:he} asked. The dark thing said nothing.]

        {helper:A_kind} had seen it all. ["Do not be afraid,"|"You do not have to run,"] said {helper:the}. "It is only
        your shadow. [Everyone has one. Look, here is mine!|It belongs to you, and it goes where you go.]" {hero}
        waved, and the shadow waved back. {hero} <laughed>. Then {hero:he} danced, and the shadow danced with
        {hero:him} all the way home. ["Good night, shadow," said {hero}.|Now {hero} was never alone when the sun was
        shining.]""",
    ),
    "the grumpy neighbor": Plot(
        weathers=FAIR,
        setup="""Next door lived an old {helper:kind} who never smiled. ["Leave me alone!" {helper:he} always
        said.|Everyone called {helper:him} Grumpy.]""",
        story="""{hero} picked a {color} flower and put it on the neighbor's step. {helper:The} opened the door, looked
        at the flower [and closed the door again|and said nothing]. The next day, {hero} brought [another flower|a ripe
        apple|{food:a}]. ["Who is doing this?" {helper:he} muttered.|{helper:The} looked left and right, but saw
        nobody.]

        On the third day, {helper:the} was waiting behind the door. "So it is you!" {helper:he} said. ["Why do you
        bring me these things?"|"What do you want from me?"] {hero} [looked at the ground|swallowed]. ["You always look
        so sad,"|"I thought you might be lonely,"] {hero:he} said.

        {helper:The} was quiet for a long time. Then something happened that nobody had ever seen: {helper:he} smiled.
        ["Come in,"|"Sit down with me,"] {helper:he} said. "I know a good story." [It was the first of many.|And what a
        story it was!] [Sometimes a small flower can open a big door.|From then on, nobody called {helper:him} grumpy
        anymore.]""",
    ),
    "the hiccups": Plot(
        weathers=NO_SNOW,
        story="""{hero} had the hiccups. "Hic!" said {hero}. [The cups danced on the table.|The birds flew up from the
        roof.] "Hic! Hic!" It would not stop. ["Help me, hic!" {hero:he} said to {friend:full}.|{hero} ran to
        {hero:his} friend {friend:full}. "Help me, hic!"]

        "I know what to do," said {friend}. TRY[{hero} held {hero:his} breath and counted to ten. Hic!|{hero} drank a
        glass of water upside down. Hic!|{hero} jumped up and down on one leg. Hic!|{hero} sang the alphabet backward.
        Hic!|{hero} ate a spoonful of honey. Hic!] ["I will hiccup forever, hic!" said {hero}.|Nothing helped.]

        <suddenly> {friend} [began to laugh|laughed so hard that {friend:he} fell over]. {hero} looked so funny! Then
        {hero} had to laugh too. They laughed until [their bellies hurt|they could not stand up]. And when they
        stopped, it was quiet. The hiccups were gone! ["Laughing is the best medicine," said {hero}.|"Hooray!" said
        {hero}.] "Hic!" said {friend}.""",
    ),
    "hide and seek": Plot(
        weathers=FAIR,
        story="""{hero} and {hero:his} friend {friend:full} played hide and seek. {hero} closed {hero:his} eyes and
        counted to [ten|twenty]. ["Here I come!" {hero:he} called.|"Ready or not, here I come!" {hero:he} called.]

        First, {hero:he} looked {place_a:search}, but {friend} was not there. Then {hero:he} looked {place_b:search},
        but {hero:he} found only <junk>. [{hero} looked high and low.|Where could {friend:he} be?] ["{friend}, where
        are you?" called {hero}.|Soon it began to get dark.] {friend} had found a very good place.

        {hero} [sat down on a pile of hay|sat down on a pile of leaves] to rest. ["I give up," {hero:he} said.|"This is
        too hard," {hero:he} said.] "Achoo!" said the pile. {hero} jumped up. The pile [shook|wobbled], and out came
        {friend}, with [a leaf on {friend:his} nose|a feather on {friend:his} head]. "You sat on me!" said {friend},
        and they <laughed>. ["You found me without looking," said {friend}.|"Now it is your turn to look," said
        {hero}.]""",
    ),
    "a bad day": Plot(
        weathers=NO_SNOW,
        story="""{hero} woke up in a bad mood. The milk was too hot. The [bread|porridge] was too cold. {hero:His}
        {color} scarf was too itchy. ["I do not like this day," said {hero}.|"Today everything is wrong," said {hero}.]

        {elder} wanted to [read a story|play a game|go for a walk], but {hero} shook {hero:his} head. {friend:Full}
        came to the door with {food:a}, but {hero} said, "[Go away!|Not today!]" {friend} looked sad and went home.
        [Now {hero} felt even worse.|{hero} felt a little sting in {hero:his} heart.]

        ["Sometimes a day has clouds inside," said {elder}. "They go away when you say what is wrong."|"It is all right
        to be in a bad mood," said {elder}. "But it is not all right to be unkind."] {hero} <thought>. Then {hero:he}
        ran after {friend}. ["I am sorry,"|"Please forgive me,"] {hero:he} said. "I was grumpy, but not because of
        you." {friend} [smiled|nodded] and held out the {food:noun}. They ate it together, crumb by crumb, and the bad
        mood was gone. ["It was a good day after all," said {hero}.|The evening was much better than the morning.]""",
    ),
}

# How a story begins, for a story that first tells about the hero and then comes to a day. "Once upon a time" is listed
# apart, since half of the stories open with it.
ONCE_INTRODUCTIONS = (
    "Once upon a time, there [was|lived] {hero:a_kind} [named|called] {hero}. {hero:He} lived {home}[ with {elder}|].",
    "Once upon a time, {hero:a_kind} [named|called] {hero} lived {home}.",
    "Once upon a time, {home}, there lived {hero:a_kind} [named|called] {hero}.",
    "Once upon a time, there was {hero:a_kind} who lived {home}. {hero:His} name was {hero}.",
    "Once upon a time, in a land far away, there lived {hero:a_kind} [named|called] {hero}.",
)
INTRODUCTIONS = (
    "There [once was|was once|was] {hero:a_kind} [named|called] {hero}. {hero:He} lived {home}[ with {elder}|].",
    "There was [once |]{hero:a_kind} who lived {home}. {hero:His} name was {hero}.",
    "Long ago, {home}, there lived {hero:a_kind} [named|called] {hero}.",
    "Far away, {home}, there lived {hero:a_kind} [named|called] {hero}.",
    "{home:In}, there lived {hero:a_kind} [named|called] {hero}.",
    "{hero} was {hero:a_kind}. {hero:He} lived {home}[ with {elder}|].",
    "This is the story of {hero}, {hero:a_kind} who lived {home}.",
    "{hero:A_kind} [named|called] {hero} lived {home}.",
)
# The same for a story that begins right on its day.
ONCE_SCENES = (
    "Once upon a time, on a {weather} {daytime}, {hero:a_kind} [named|called] {hero} <looked_out>. {weather_line}",
)
SCENES = (
    "One {weather} {daytime}, {hero:a_kind} [named|called] {hero} <looked_out>. {weather_line}",
    "One {weather} {daytime}, {hero:a_kind} who lived {home} <looked_out>. {hero:His} name was {hero}. {weather_line}",
    "It was a {weather} {daytime}. {weather_line} {hero:A_kind} [named|called] {hero} <looked_out>.",
    "On a {weather} {daytime}, {hero:a_kind} [named|called] {hero} <looked_out>. {weather_line}",
)
DAY_LINES = (
    "One {weather} {daytime},",
    "It was a {weather} {daytime}. {weather_line}",
    "Then came a {weather} {daytime}. {weather_line}",
)
TRAITS = (
    "{hero:He} was [small|young], but {hero:he} had a big heart.",
    "{hero:He} loved [to climb hills|to look at the clouds|to pick flowers|to jump in puddles|to listen to stories].",
    "{hero:He} liked [to collect smooth stones|to draw pictures|to ask questions|to run in the grass|to make soup].",
    "Everyone [liked|knew] {hero:him}, because {hero:he} [always had a smile|was so funny|was kind to everybody].",
    "{hero:He} was [always busy|never bored|full of questions|as curious as a cat].",
)

# How a story ends, after its plot; the plot may have ended days after it began.
CLOSINGS = (
    "{hero} and {hero:his} friends lived happily ever after.",
    "And they all lived happily ever after.",
    "And if you ever go there, {hero} will tell you all about it.",
    "{hero} never forgot [that|this] day.",
    "It was a day that nobody ever forgot.",
    "And when {hero} went to bed, {hero:he} [smiled in the dark|fell asleep with a smile].",
    "{hero} told {elder} all about it, and {elder} [was very proud|gave {hero:him} <hug>].",
    "And {hero} was the happiest {hero:kind} in the whole [world|land].",
    "The end.",
)
