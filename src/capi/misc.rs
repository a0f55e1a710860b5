//! Version, errors in words, log.

use std::ffi::{CString, c_char, c_int, c_void};

use super::{LAST_ERROR, guard};
use crate::log::{self, Level};
use crate::storage::command::status_text;

/// Returns the library's version: major << 16 | minor << 8 | patch. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn unified_version() -> u32 {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    number(env!("CARGO_PKG_VERSION_MAJOR")) << 16
        | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | number(env!("CARGO_PKG_VERSION_PATCH"))
}

/// Returns the library's version as static text. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn unified_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Returns a message about the last function of this thread that failed, or did only a part of a batch: what was tried, on what,
/// and what to do. Never NULL; empty before the first failure. Valid until the next call of this library in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn unified_last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|slot| slot.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Returns the text of an errno, negative or positive. Valid until the next call of this function in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn unified_strerror(error: c_int) -> *const c_char {
    thread_local! {
        static TEXT: std::cell::RefCell<CString> = std::cell::RefCell::default();
    }
    let text =
        CString::new(crate::error::errno_text(error.unsigned_abs() as i32)).unwrap_or_default();
    TEXT.try_with(|slot| {
        *slot.borrow_mut() = text;
        slot.borrow().as_ptr()
    })
    .unwrap_or(c"".as_ptr())
}

/// Returns the text of an NVMe status (type << 8 | code). It is static. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn unified_status_string(status: u32) -> *const c_char {
    use crate::sys::fork::Lock;
    use std::collections::BTreeMap;
    // C needs a zero byte after the text; each string is made once and kept.
    static TEXTS: Lock<BTreeMap<u16, &'static std::ffi::CStr>> = Lock::new(BTreeMap::new());
    let status = (status & 0x7ff) as u16;
    TEXTS
        .lock_or_renew(BTreeMap::new)
        .entry(status)
        .or_insert_with(|| {
            Box::leak(
                CString::new(status_text(status))
                    .unwrap_or_default()
                    .into_boxed_c_str(),
            )
        })
        .as_ptr()
}

/// Callback for log lines of the library, of libxdp and of libbpf. `level`: 0 error, 1 warning, 2 info, 3 debug. `line` ends in
/// a zero byte and is valid during the call. It is called from any thread. It must return (no longjmp) and must not call
/// unified_set_log_callback.
#[allow(non_camel_case_types)]
pub type unified_log_fn =
    Option<extern "C" fn(level: c_int, line: *const c_char, user: *mut c_void)>;

struct User(*mut c_void);
// SAFETY: the pointer is only handed back to the program, which promised to take it in any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

/// Sets the log callback of the process. NULL turns the log off (the default). Lines above `max_level` are not passed on. When
/// the function returns, the previous callback is no longer running and will not be called again. Returns 0, or -EINVAL if
/// the level is out of range. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn unified_set_log_callback(
    callback: unified_log_fn,
    max_level: c_int,
    user: *mut c_void,
) -> c_int {
    guard(|| {
        if !(0..=3).contains(&max_level) {
            return Err(crate::Error::new(
                libc::EINVAL,
                format!("log level {max_level} is not 0 to 3"),
            ));
        }
        let user = User(user);
        log::set_callback(callback.map(|callback| {
            let each = move |level: Level, line: &str| {
                let user = &user;
                if level as c_int <= max_level {
                    let line = CString::new(line.replace('\0', "?")).unwrap_or_default();
                    callback(level as c_int, line.as_ptr(), user.0);
                }
            };
            Box::new(each) as Box<dyn Fn(Level, &str) + Send + Sync>
        }));
        Ok(0)
    })
}
