"""Operations of many steps on a running cloud: calls to nodes, numbered steps, a journal to go on from."""
