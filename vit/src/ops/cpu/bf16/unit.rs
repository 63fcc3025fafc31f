//! What multiplies bf16 on this machine.
use std::fmt;

use super::super::limit::Loop;

/// A unit of the processor that multiplies bf16; made only of those that are there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Unit(pub(super) Kernel);

/// What multiplies tiles.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Tiles of 16 x 32 in registers of their own, 16 * 16 * 32 multiplications an instruction.
    Amx,
    /// 32 multiplications an instruction.
    Avx512,
    /// No unit for bf16: products of widened numbers. Slower than f32.
    Emulated,
}

impl Unit {
    /// The fastest one of this machine; `None` if none is faster than f32.
    pub fn best() -> Option<Self> {
        if amx_is_there() {
            return Some(Self(Kernel::Amx));
        }
        avx512_is_fast().then_some(Self(Kernel::Avx512))
    }

    /// That of a name, for tests and measurements: `avx512`, `emulated` (plain Rust, slow), `any` (the best, or emulated where
    /// there is none), `none`.
    ///
    /// # Errors
    /// Another name, or a unit that this machine does not have.
    pub fn named(name: &str) -> Result<Option<Self>, String> {
        match name {
            "none" => Ok(None),
            "emulated" => Ok(Some(Self(Kernel::Emulated))),
            "any" => Ok(Some(Self::best().unwrap_or(Self(Kernel::Emulated)))),
            "avx512" if avx512_is_there() => Ok(Some(Self(Kernel::Avx512))),
            "avx512" => Err("this machine has no AVX-512-BF16".into()),
            _ => Err(format!(
                "'{}' is none of avx512, emulated, any, none",
                name.escape_debug()
            )),
        }
    }

    /// As it is told to people.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kernel::Amx => "AMX",
            Kernel::Avx512 => "AVX-512-BF16",
            Kernel::Emulated => "emulated",
        }
    }

    /// A loop that stays in registers, and the multiplications of a round; `None` for what is no unit of the processor.
    pub(in super::super) fn in_registers(self) -> Option<(Loop, u64)> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a unit is made only of those that are there.
            Kernel::Amx => Some((
                |rounds| unsafe { super::amx::in_registers(rounds) },
                4 * 16 * 16 * 32,
            )),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernel::Avx512 => Some((
                |rounds| unsafe { super::avx512::in_registers(rounds) },
                16 * 32,
            )),
            _ => None,
        }
    }

    /// All that run on this machine.
    #[cfg(test)]
    pub fn available() -> Vec<Self> {
        let amx = amx_is_there().then_some(Kernel::Amx);
        let avx512 = avx512_is_there().then_some(Kernel::Avx512);
        let all = [amx, avx512, Some(Kernel::Emulated)];
        all.into_iter().flatten().map(Self).collect()
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

pub(super) fn avx512_is_there() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Only where it is faster than f32: on AMD's cores it doubles the speed, on Intel's it halves it (Emerald Rapids: 75 GFLOP/s
/// a core, f32 155).
fn avx512_is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // Asked once: a virtual machine stops for it.
        static AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        let amd = *AMD.get_or_init(|| {
            // SAFETY: every 64-bit x86 has this instruction. (Newer compilers know that.)
            #[allow(unused_unsafe)]
            let id = unsafe { std::arch::x86_64::__cpuid(0) };
            [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        });
        amd && avx512_is_there()
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn amx_is_there() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::amx::is_there();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_unit_or_an_error() {
        assert_eq!(Unit::named("none"), Ok(None));
        let name = |asked| Unit::named(asked).unwrap().map(Unit::name);
        assert_eq!(name("emulated"), Some("emulated"));
        assert_eq!(
            Unit::named("any").unwrap(),
            Unit::best().or(Some(Unit(Kernel::Emulated)))
        );
        assert_eq!(Unit::named("avx512").is_ok(), avx512_is_there());
        for nonsense in ["", "nonsense", "AMX"] {
            assert!(Unit::named(nonsense).unwrap_err().contains("none of"));
        }
    }
}
