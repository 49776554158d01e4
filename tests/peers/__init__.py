"""Real programs: those that send mail, the letters that each sends, and other servers."""
