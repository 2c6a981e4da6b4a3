"""Scores: bits per byte, multiple choice by letter, free answers; Wilson intervals; the score file."""
