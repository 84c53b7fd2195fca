"""One network whose units are with several workers: who has which, and how a piece is computed that needs several."""
