"""Real programs: senders of mail, the letters that each sends, and other servers."""
