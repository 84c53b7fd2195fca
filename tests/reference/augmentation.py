"""Augmentations pixel by pixel, from the same random numbers."""

from __future__ import annotations

import numpy as np


def partners(numbers):
    """The next image in the circle that the numbers put the images into."""
    circle = sorted(range(len(numbers)), key=lambda index: numbers[index])
    return {image: circle[(place + 1) % len(circle)] for place, image in enumerate(circle)}


def reflected(place, length):
    """The place that a border reflection shows, without repeating the border itself."""
    place = abs(place)
    return place if place < length else 2 * (length - 1) - place


def shifted(image, down, right):
    """image[c, y + down, x + right], reflected at the borders."""
    _, height, width = image.shape
    result = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            result[:, y, x] = image[:, reflected(y + down, height), reflected(x + right, width)]
    return result


def mixup(images, shares, others):
    return np.stack([shares[i] * images[i] + (1 - shares[i]) * images[others[i]] for i in range(len(images))])


def cutmix(images, shares, middles_y, middles_x, others):
    """Yun et al. 2019, equation 2, with the mask of section 3.1."""
    count, _, height, width = images.shape
    result = images.copy()
    for i in range(count):
        side = (1 - shares[i]) ** 0.5
        for y in range(height):
            for x in range(width):
                rows = round(height * (middles_y[i] - side / 2)) <= y < round(height * (middles_y[i] + side / 2))
                columns = round(width * (middles_x[i] - side / 2)) <= x < round(width * (middles_x[i] + side / 2))
                if rows and columns:
                    result[i, :, y, x] = images[others[i], :, y, x]
    return result
