"""Other ways to an answer than a call at list price: which is taken, and what is durable of requests handed over."""
