"""Images and videos in messages: the forms in which clients send them."""
