//! Unchanged programs that receive and store.

use super::*;

#[test]
fn the_full_stack_of_an_unchanged_program() {
    if !is_root("the_full_stack_of_an_unchanged_program") {
        return;
    }
    let shop = Workshop::new("full-stack");
    for (cc, optimization) in BUILDS {
        let program = shop.build("uapi-full-stack", cc, optimization);
        let file = shop.file("device", 8 << 20);
        let file = file.to_str().unwrap();
        full_stack(stack_command(&program, file, ""), file);
    }
}

#[test]
fn the_full_stack_on_a_block_device() {
    if !is_root("the_full_stack_on_a_block_device") {
        return;
    }
    let shop = Workshop::new("stack-block");
    let program = shop.build("uapi-full-stack", "gcc", "-O2");
    let file = shop.file("backing", 8 << 20);
    let device = Loop::new(&file, 512);
    full_stack(stack_command(&program, &device.0, ""), &device.0);
}

#[test]
fn the_full_stack_of_a_program_built_already() {
    if !is_root("the_full_stack_of_a_program_built_already") {
        return;
    }
    let shop = Workshop::new("stack-preload");
    let program = build_plain(&shop, "uapi-full-stack");
    let file = shop.file("device", 8 << 20);
    let file = file.to_str().unwrap();
    let object = preload(&shop);
    full_stack(
        |interface| {
            Stack::start(
                Command::new(&program)
                    .args([interface, file, "0"])
                    .env("LD_PRELOAD", &object),
            )
        },
        file,
    );
}
