"""``waferline bench``: what the engine reaches beside what the machine allows, both measured in the same run."""
