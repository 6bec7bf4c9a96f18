"""How good the networks are: tables of figures, each beside simple peers measured on the same data in the same run."""
