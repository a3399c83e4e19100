"""Operations: tensors in, tensors out; torch only."""
