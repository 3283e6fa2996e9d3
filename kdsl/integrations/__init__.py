"""Other libraries: their formats to ours and back, one module a peer.

What every module here keeps to:

* It imports without its peer.  The peer (and torch) is imported inside the functions that make
  its objects, through `required`, whose error names the package to install.  Reading is
  duck-typed: what has the peer's fields is read, whether or not the peer is installed.
* ``from_x`` reads, ``to_x`` writes.  Rows of blocks come and go as `kdsl.blocks.Blocks`, whose
  rows and columns are stored positions: a peer without orders gets q, k and v in stored order.
* Meaning is kept exactly.  What a format cannot hold is an error that says what would work; a
  choice such as ``partial="full"`` is the caller's, and never a default.
* It may import the language and the runtime; nothing in the house imports it.
"""
