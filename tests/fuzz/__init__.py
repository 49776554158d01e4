"""A fuzzer for sessions, and the dialogues that it starts from."""
