"""`python -m negalign_ray.cli`, for machines where the console script is not on the path."""

from negalign_ray.cli import main

main()
