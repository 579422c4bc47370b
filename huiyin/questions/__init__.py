"""What a language model is asked, and when an answer is good enough; redaction of personal data."""
