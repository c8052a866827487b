"""Problems whose right answer can be computed: finite decision processes, bandits, diffusions."""
