//! What steps ask of the world outside: requests and models, with a real server at the other end.
