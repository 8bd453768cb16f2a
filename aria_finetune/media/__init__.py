"""Safe opening of the images and videos that data refers to; knows neither torch nor the data formats."""
