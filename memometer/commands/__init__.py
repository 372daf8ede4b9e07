"""The subcommands of memometer, one file each."""
