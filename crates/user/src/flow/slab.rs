//! A table of fixed capacity whose entries keep their index.

/// Up to a fixed number of entries; allocated once.
pub(crate) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new(capacity: u32) -> Self {
        let entries = (0..capacity).map(|_| None).collect();
        Self { entries, free: (0..capacity).rev().collect() }
    }

    /// The entry's index, or the entry back when the table is full.
    pub(crate) fn insert(&mut self, entry: T) -> Result<u32, T> {
        let Some(index) = self.free.pop() else { return Err(entry) };
        match self.entries.get_mut(slot(index)) {
            Some(place) => {
                *place = Some(entry);
                Ok(index)
            }
            None => Err(entry),
        }
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(slot(index))?.take()?;
        self.free.push(index);
        Some(entry)
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(slot(index))?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The entries in use, with their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.entries).filter_map(|(index, entry)| Some((index, entry.as_ref()?)))
    }
}

fn slot(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_gives_the_entry_back_and_a_freed_place_is_used_again() {
        let mut slab = Slab::new(2);
        assert_eq!((slab.insert('a'), slab.insert('b')), (Ok(0), Ok(1)));
        assert_eq!(slab.insert('c'), Err('c'));
        assert_eq!((slab.remove(0), slab.remove(0)), (Some('a'), None));
        assert_eq!((slab.insert('c'), slab.len()), (Ok(0), 2));
        assert_eq!(slab.remove(9), None);
    }
}
