"""Fuzzers of sessions and of protocol clients, and the corpus of the session fuzzer."""
