"""What makes the documentation: pictures, pages taken from the code, and checks of both."""
