"""JSON Schemas of answers: columns, and checks in linear time."""
