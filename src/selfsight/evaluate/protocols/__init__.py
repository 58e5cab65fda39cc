"""The ways to judge an encoder, each a file of the name that the command line calls it."""
