"""The life of jobs: which moves are legal, what starts next, what each event changes, who hears of it."""
