//! `stepwell build bench/guests/noop`, then `stepwell deploy noop COMPONENT` and `stepwell run noop --input 1`.
//!
//! Ten steps in a row that hand on what they get: what is left to measure is the host's own cost per step.
//! Deliberately without updates, log lines and computing.

use serde_json::Value;
use stepwell_guest::prelude::*;

#[workflow]
mod noop {
    use super::*;

    #[step]
    pub fn s1(input: Value) -> Result<Value, Failure> {
        Ok(input)
    }

    #[step]
    pub fn s2(s1: Value) -> Result<Value, Failure> {
        Ok(s1)
    }

    #[step]
    pub fn s3(s2: Value) -> Result<Value, Failure> {
        Ok(s2)
    }

    #[step]
    pub fn s4(s3: Value) -> Result<Value, Failure> {
        Ok(s3)
    }

    #[step]
    pub fn s5(s4: Value) -> Result<Value, Failure> {
        Ok(s4)
    }

    #[step]
    pub fn s6(s5: Value) -> Result<Value, Failure> {
        Ok(s5)
    }

    #[step]
    pub fn s7(s6: Value) -> Result<Value, Failure> {
        Ok(s6)
    }

    #[step]
    pub fn s8(s7: Value) -> Result<Value, Failure> {
        Ok(s7)
    }

    #[step]
    pub fn s9(s8: Value) -> Result<Value, Failure> {
        Ok(s8)
    }

    #[step]
    pub fn s10(s9: Value) -> Result<Value, Failure> {
        Ok(s9)
    }
}
