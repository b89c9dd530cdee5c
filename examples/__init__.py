"""Small programs that show asyncpar; each runs as it stands. See README.md in this folder."""
