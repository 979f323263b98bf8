"""The page that a person explores: its data, its scripts, and how they become one file."""
