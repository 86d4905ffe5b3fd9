/*
 * fuzz_connection.c: a Connection message's JSON. What is decoded can be written again and reads
 * back the same.
 */
#include "disco/connection.h"

#include <string.h>

#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mc_diag diag = {.text = ""};
	struct mc_connection c, back;
	struct mc_view server, device;
	char path[MC_NIC_PATH_MAX], *json;
	size_t json_len;

	if (mc_connection_decode((const char *)data, len, &c, &diag) < 0)
		return 0;
	mc_assert(c.nqps <= MC_CONNECTION_QPS_MAX);
	if (mc_nic_path_split(c.peer_nic, &server, &device) == 0)
		mc_assert(server.len + device.len + 1 == strlen(c.peer_nic));
	if (mc_nic_path_join(c.local_nic, c.peer_nic, path) == 0)
		mc_assert(strlen(path) == strlen(c.local_nic) + 1 + strlen(c.peer_nic));
	if (mc_connection_encode(&c, &json, &json_len) < 0)
		return 0; /* a reason cut within a character */
	mc_assert(mc_connection_decode(json, json_len, &back, &diag) == 0);
	mc_assert(memcmp(&c, &back, sizeof(c)) == 0);
	mc_free(json);
	return 0;
}
