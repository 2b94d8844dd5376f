"""A vector face: records of a person and a photo, and the parts that draw them.

Face coordinates are in units of the picture's side, seen from the front: x to the right, y down, z towards
the camera, the origin in the middle of the head. Picture coordinates span 0..1 in x and y. "Left" is always
the image's left (lower x).

Each module imports only from earlier ones: ``geometry`` and ``colours``; ``canvas``; ``person``, the records with
their random draws; ``head``, the posed surface; ``skin``, ``features``, ``hair`` and ``accessories``, one function
per part; ``photo``, which draws the parts in their order and develops the picture.
"""
