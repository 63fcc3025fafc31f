//! Whether all ranks are about to send the same.
use super::Communicator;
use crate::Error;

/// Compares the names and sizes of `tensors` over all ranks: a rank that froze another layer, or has another model, would
/// otherwise add its numbers to those of something else.
///
/// # Errors
/// [`Error::Distributed`] on all ranks alike.
pub(super) fn agree<'a>(
    what: &str,
    tensors: impl Iterator<Item = (&'a str, usize)>,
    ranks: &dyn Communicator,
) -> Result<(), Error> {
    let (mut count, mut elements, mut hash) = (0usize, 0usize, FNV_BASIS);
    for (name, size) in tensors {
        (count, elements) = (count + 1, elements + size);
        hash = fnv(hash, name.bytes());
        // 0xff is in no name: it parts the name from the size.
        hash = fnv(hash, std::iter::once(0xff).chain(size.to_le_bytes()));
    }
    // Each rank writes in places of its own, so that the sum is everybody's numbers; f64 holds 53 bits of each exactly.
    let mut all = vec![0.0; 3 * ranks.size()];
    let own = [count as f64, elements as f64, (hash >> 11) as f64];
    all[3 * ranks.rank()..][..3].copy_from_slice(&own);
    ranks.all_reduce_f64(&mut all)?;
    let first = &all[..3];
    let Some(other) = all.chunks_exact(3).position(|rank| rank != first) else {
        return Ok(());
    };
    let told = |rank: usize| {
        format!(
            "rank {rank} has {} of {} elements",
            all[3 * rank],
            all[3 * rank + 1]
        )
    };
    Err(Error::Distributed(format!(
        "rank {} of {}: the ranks do not have the same {what}: {}, {}{}; all must build the same model and freeze the same layers \
         at the same step (a policy that looks at gradients needs FreezeOut::with_reduced_gradients)",
        ranks.rank(),
        ranks.size(),
        told(0),
        told(other),
        if all[3 * other..][..2] == first[..2] { " under other names or of other sizes" } else { "" },
    )))
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(hash, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
