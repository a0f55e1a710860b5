//! Made from include/unified.h and include/unified_uapi.h by bindings/header.py; do not edit.
//! Every struct and constant of the crate that C sees is as abi/layout has it; C is compared with that file by
//! tests/programs/test_abi.py.
#![forbid(unsafe_code)]

use std::mem::offset_of;

use unified::capi::types::*;
use unified::sys::abi::*;

fn field<T, F>(_: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! of {
    ($lines:ident, $name:literal, $kind:ident { $($field:ident)* }) => {
        $lines.push(format!("{} - {} 0", $name, size_of::<$kind>()));
        $(
            let size = field(|value: &$kind| &value.$field);
            let at = offset_of!($kind, $field);
            $lines.push(format!("{} {} {size} {at}", $name, stringify!($field)));
        )*
    };
    ($lines:ident, $name:literal = $value:ident) => {
        $lines.push(format!("{} = {}", $name, i128::from($value) as i64));
    };
}

#[test]
fn the_crate_lays_out_what_c_sees_as_the_table_says() {
    let mut lines = Vec::new();
    of! { lines, "unified_device", unified_device { size path file_size block_size flags fd reserved spill } }
    of! { lines, "unified_config", unified_config { size ifname device file_size queue flags ports port_count drive frame_size frame_count headroom sq_entries cq_entries rx_ring fill_ring xdp_mode copy_mode run_priority event_sample events_bytes block_size reserved retries retry_backoff_us retry_give_up_ms xsk_map_fd xsk_fd device_fd spill queues cpu_count cpus devices device_count reserved2 buffers_max xsk_fds xsk_fd_count reserved3 } }
    of! { lines, "unified_info", unified_info { size backend region region_size sq_ring cq_ring sq_entries_offset cq_entries_offset buffers buffers_size blocks block_size max_transfer dma_alignment nsid sq_entries cq_entries frame_size frame_count headroom ifindex queue rx_queues xdp_program_id huge_pages native zero_copy dispatcher direct_io writable volatile_cache threaded reserved lanes lane devices reserved1 } }
    of! { lines, "unified_stats", unified_stats { size xdp_seen xdp_passed xdp_redirected xdp_matched xdp_no_socket xdp_malformed xdp_fragments events events_lost no_metadata rx_dropped rx_ring_full rx_fill_ring_empty redirect_errors rx_pending received received_bytes stored stored_bytes failed released packets_held packets_in_flight submitted completed errors operations commands_in_flight sq_full bounced bounced_bytes bytes_written bytes_read frames_free frames_filled frames_held frames_in_flight misplaced bad_descriptors link_up link_changes xdp_attached xdp_changes spilled spilled_bytes xdp_merged packed packed_bytes frames_reserve buffers buffer_bytes buffer_registered_bytes } }
    of! { lines, "unified_latency", unified_latency { size count sum max buckets } }
    of! { lines, "unified_event", unified_event { timestamp src_addr dst_addr src_port dst_port payload_len vlan_tci queue ip_version flags reserved } }
    of! { lines, "unified_device_info", unified_device_info { size backend path blocks block_size max_transfer dma_alignment nsid direct_io writable volatile_cache out reserved operations errors bytes_written bytes_read spilled spilled_bytes in_flight } }
    of! { lines, "unified_packet", unified_packet { data payload timestamp len payload_len frame queue l3_offset payload_offset src_port dst_port vlan_tci ip_version flags reserved } }
    of! { lines, "unified_write", unified_write { data lba user_data len frame flags reserved } }
    of! { lines, "unified_nvme_command", unified_nvme_command { opcode reserved0 reserved1 nsid cdw2 cdw3 cdw10 cdw11 cdw12 cdw13 cdw14 cdw15 data_len timeout } }
    of! { lines, "unified_completion", unified_completion { user_data result status len frame flags device } }
    of! { lines, "unified_submission", unified_submission { size lba user_data data command op device frame len blocks flags buffer } }
    of! { lines, "unified_buffer_info", unified_buffer_info { size data len commands reserved } }
    of! { lines, "unified_pipeline_config", unified_pipeline_config { size start_lba blocks at_end flags layout flush_writes flush_interval_ms moderation_us pack_below chunk_bytes } }
    of! { lines, "unified_pipeline_status", unified_pipeline_status { size next_lba wraps submitted stored failed payload_bytes no_space empty running error first_sequence completed durable flushes pack_below rescued unflushed } }
    of! { lines, "unified_log_record", unified_log_record { size sequence count timestamp packet payload len payload_len kind src_port dst_port vlan_tci queue ip_version flags reserved lane device reserved2 } }
    of! { lines, "unified_log_info", unified_log_info { size log_id created slots slot_size block_size oldest end position records missing damaged overwritten dropped unrecorded first_loss last_loss interface version reserved lanes devices devices_given reserved2 } }
    of! { lines, "UNIFIED_DRIVE_INLINE" = UNIFIED_DRIVE_INLINE }
    of! { lines, "UNIFIED_DRIVE_THREAD" = UNIFIED_DRIVE_THREAD }
    of! { lines, "UNIFIED_XDP_AUTO" = UNIFIED_XDP_AUTO }
    of! { lines, "UNIFIED_XDP_NATIVE" = UNIFIED_XDP_NATIVE }
    of! { lines, "UNIFIED_XDP_SKB" = UNIFIED_XDP_SKB }
    of! { lines, "UNIFIED_COPY_AUTO" = UNIFIED_COPY_AUTO }
    of! { lines, "UNIFIED_COPY_ONLY" = UNIFIED_COPY_ONLY }
    of! { lines, "UNIFIED_COPY_ZERO" = UNIFIED_COPY_ZERO }
    of! { lines, "UNIFIED_HUGE_PAGES" = UNIFIED_HUGE_PAGES }
    of! { lines, "UNIFIED_FORCE" = UNIFIED_FORCE }
    of! { lines, "UNIFIED_READ_ONLY" = UNIFIED_READ_ONLY }
    of! { lines, "UNIFIED_NO_PASSTHROUGH" = UNIFIED_NO_PASSTHROUGH }
    of! { lines, "UNIFIED_NO_BOUNCE" = UNIFIED_NO_BOUNCE }
    of! { lines, "UNIFIED_HEADROOM" = UNIFIED_HEADROOM }
    of! { lines, "UNIFIED_NO_EVENTS" = UNIFIED_NO_EVENTS }
    of! { lines, "UNIFIED_XSK_MAP_FD" = UNIFIED_XSK_MAP_FD }
    of! { lines, "UNIFIED_XSK_FD" = UNIFIED_XSK_FD }
    of! { lines, "UNIFIED_DEVICE_FD" = UNIFIED_DEVICE_FD }
    of! { lines, "UNIFIED_FUA" = UNIFIED_FUA }
    of! { lines, "UNIFIED_KEEP" = UNIFIED_KEEP }
    of! { lines, "UNIFIED_MORE" = UNIFIED_MORE }
    of! { lines, "UNIFIED_WAIT_RX" = UNIFIED_WAIT_RX }
    of! { lines, "UNIFIED_WAIT_COMPLETIONS" = UNIFIED_WAIT_COMPLETIONS }
    of! { lines, "UNIFIED_PACKET_VLAN" = UNIFIED_PACKET_VLAN }
    of! { lines, "UNIFIED_COMPLETION_DNR" = UNIFIED_COMPLETION_DNR }
    of! { lines, "UNIFIED_COMPLETION_FRAME" = UNIFIED_COMPLETION_FRAME }
    of! { lines, "UNIFIED_COMPLETION_BOUNCED" = UNIFIED_COMPLETION_BOUNCED }
    of! { lines, "UNIFIED_COMPLETION_SPILLED" = UNIFIED_COMPLETION_SPILLED }
    of! { lines, "UNIFIED_LAYOUT_PAYLOAD" = UNIFIED_LAYOUT_PAYLOAD }
    of! { lines, "UNIFIED_LAYOUT_SLOT" = UNIFIED_LAYOUT_SLOT }
    of! { lines, "UNIFIED_LAYOUT_LOG" = UNIFIED_LAYOUT_LOG }
    of! { lines, "UNIFIED_LOG_UNCHECKED" = UNIFIED_LOG_UNCHECKED }
    of! { lines, "UNIFIED_LOG_NEW" = UNIFIED_LOG_NEW }
    of! { lines, "UNIFIED_AT_END_STOP" = UNIFIED_AT_END_STOP }
    of! { lines, "UNIFIED_AT_END_WRAP" = UNIFIED_AT_END_WRAP }
    of! { lines, "UNIFIED_ALL_QUEUES" = UNIFIED_ALL_QUEUES }
    of! { lines, "UNIFIED_NO_RETRY" = UNIFIED_NO_RETRY }
    of! { lines, "UNIFIED_OP_FLUSH" = UNIFIED_OP_FLUSH }
    of! { lines, "UNIFIED_OP_WRITE" = UNIFIED_OP_WRITE }
    of! { lines, "UNIFIED_OP_READ" = UNIFIED_OP_READ }
    of! { lines, "UNIFIED_OP_COMPARE" = UNIFIED_OP_COMPARE }
    of! { lines, "UNIFIED_OP_WRITE_ZEROES" = UNIFIED_OP_WRITE_ZEROES }
    of! { lines, "UNIFIED_OP_DEALLOCATE" = UNIFIED_OP_DEALLOCATE }
    of! { lines, "UNIFIED_OP_RAW" = UNIFIED_OP_RAW }
    of! { lines, "UNIFIED_ALL_DEVICES" = UNIFIED_ALL_DEVICES }
    of! { lines, "UNIFIED_LATENCY_PACKET" = UNIFIED_LATENCY_PACKET }
    of! { lines, "UNIFIED_LATENCY_COMMAND" = UNIFIED_LATENCY_COMMAND }
    of! { lines, "UNIFIED_LATENCY_BUCKETS" = UNIFIED_LATENCY_BUCKETS }
    of! { lines, "UNIFIED_LOG_RECORD" = UNIFIED_LOG_RECORD }
    of! { lines, "UNIFIED_LOG_MISSING" = UNIFIED_LOG_MISSING }
    of! { lines, "UNIFIED_LOG_DAMAGED" = UNIFIED_LOG_DAMAGED }
    of! { lines, "UNIFIED_LOG_OVERWRITTEN" = UNIFIED_LOG_OVERWRITTEN }
    of! { lines, "io_unified_nvme_cmd", NvmeUringCmd { opcode flags rsvd1 nsid cdw2 cdw3 metadata addr metadata_len data_len cdw10 cdw11 cdw12 cdw13 cdw14 cdw15 timeout_ms rsvd2 } }
    of! { lines, "io_unified_offsets", UnifiedOffsets { sq_ring cq_ring sq_entries cq_entries buffers } }
    of! { lines, "io_unified_reg", UnifiedReg { region_ptr nvme_dev_path sq_entries cq_entries buffer_entries buffer_entry_size flags reserved offsets } }
    of! { lines, "io_unified_ring", UnifiedRing { producer consumer cached_producer cached_consumer flags ring_entries ring_mask ring_size } }
    of! { lines, "io_unified_sqe", UnifiedSqe { nvme_cmd buf_offset user_data flags pad } }
    of! { lines, "io_unified_cqe", UnifiedCqe { user_data result status dma_addr len flags } }
    of! { lines, "IO_UNIFIED_NO_BUFFER" = NO_BUFFER }
    of! { lines, "IO_UNIFIED_NEED_WAKEUP" = RING_NEED_WAKEUP }
    of! { lines, "IO_UNIFIED_CQE_DNR" = CQE_DNR }
    of! { lines, "IO_UNIFIED_CQE_BOUNCED" = CQE_BOUNCED }
    let own = [
        "IO_UNIFIED_REGISTER",
        "IO_UNIFIED_UNREGISTER",
        "IO_UNIFIED_MAX_ENTRIES",
        "__resv",
        "resv",
    ];
    let table: Vec<&str> = include_str!("../abi/layout")
        .lines()
        .filter(|line| !line.split_whitespace().any(|word| own.contains(&word)))
        .collect();
    assert!(table.len() > 250);
    assert_eq!(lines, table);
}
