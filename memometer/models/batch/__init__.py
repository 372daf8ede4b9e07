"""Language models through the batch endpoints of OpenAI and Together: half the price, replies within a day."""
