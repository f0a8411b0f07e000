"""What training needs beside the model, on torch alone."""
