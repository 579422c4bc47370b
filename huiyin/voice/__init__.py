"""Does it sound like the member? Losses, authorship, habits, copies: each measured on replies nobody trained on."""
