"""One reader for each format of a chat history, and what is common to all of them."""
