"""From what a user asks and a GPU allows to the settings of an engine, each with its reason."""
