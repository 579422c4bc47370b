"""One reader for each format of a chat history, and the functions that they share."""
