//! The hierarchical timing wheel, intrusive over slab indices.
