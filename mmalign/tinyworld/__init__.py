"""A drawn world with exact judges: scenes, pictures, language, sums and preference oracles.

Importing this package loads nothing heavy; import the module you need, for instance
`mmalign.tinyworld.tasks` for the table of tasks.
"""
