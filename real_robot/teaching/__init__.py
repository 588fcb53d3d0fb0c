"""How a person drives the arm: devices behind one protocol, what watches over them, and what they are turned into."""
