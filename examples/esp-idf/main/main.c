/* A device on an ESP32: MQTT 3.1.1 over TLS with a client certificate, by esp-mqtt, which does the heartbeats (keep-alive)
 * and keeps what was not acknowledged. What it lacks is the jitter: here the device comes back by itself, a random time
 * within a span that doubles with each failure.
 *
 *     app_main     Wi-Fi, the client, then for ever: wait for the end of a connection, wait, come back
 *     on_mqtt      what the client tells: connected, a command, acknowledged, the end, an error
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "esp_err.h"
#include "esp_event.h"
#include "esp_log.h"
#include "esp_netif.h"
#include "esp_random.h"
#include "esp_timer.h"
#include "esp_wifi.h"
#include "freertos/FreeRTOS.h"
#include "freertos/event_groups.h"
#include "freertos/task.h"
#include "mqtt_client.h"
#include "nvs_flash.h"

#define HOME "devices/" CONFIG_DEVICE_ID
#define SPAN_MAX_MS 300000u

#define HAS_ADDRESS BIT0
#define CONNECTED BIT1
#define ENDED BIT2

/* Made from the files in this directory by EMBED_TXTFILES, with a zero at the end. */
extern const char ca_pem[] asm("_binary_ca_pem_start");
extern const char client_pem[] asm("_binary_client_pem_start");
extern const char client_key[] asm("_binary_client_key_start");

static const char *TAG = "device";
static EventGroupHandle_t state;
/* When the connection counts as one that has lasted, in microseconds since the start; 0: there is none. */
static int64_t steady_after;

static void on_wifi(void *context, esp_event_base_t base, int32_t id, void *data)
{
    (void)context;
    (void)data;
    if (base == WIFI_EVENT && (id == WIFI_EVENT_STA_START || id == WIFI_EVENT_STA_DISCONNECTED)) {
        xEventGroupClearBits(state, HAS_ADDRESS);
        esp_wifi_connect();
    } else if (base == IP_EVENT && id == IP_EVENT_STA_GOT_IP) {
        xEventGroupSetBits(state, HAS_ADDRESS);
    }
}

static void start_wifi(void)
{
    wifi_init_config_t init = WIFI_INIT_CONFIG_DEFAULT();
    wifi_config_t wifi = {.sta = {.ssid = CONFIG_DEVICE_WIFI_SSID, .password = CONFIG_DEVICE_WIFI_PASSWORD}};
    ESP_ERROR_CHECK(esp_netif_init());
    ESP_ERROR_CHECK(esp_event_loop_create_default());
    esp_netif_create_default_wifi_sta();
    ESP_ERROR_CHECK(esp_wifi_init(&init));
    ESP_ERROR_CHECK(esp_event_handler_register(WIFI_EVENT, ESP_EVENT_ANY_ID, on_wifi, NULL));
    ESP_ERROR_CHECK(esp_event_handler_register(IP_EVENT, IP_EVENT_STA_GOT_IP, on_wifi, NULL));
    ESP_ERROR_CHECK(esp_wifi_set_mode(WIFI_MODE_STA));
    ESP_ERROR_CHECK(esp_wifi_set_config(WIFI_IF_STA, &wifi));
    ESP_ERROR_CHECK(esp_wifi_start());
}

static void on_error(const esp_mqtt_error_codes_t *error)
{
    if (error->error_type == MQTT_ERROR_TYPE_TCP_TRANSPORT)
        ESP_LOGE(TAG, "network or TLS: %s, TLS 0x%x, certificate flags 0x%x, errno %d", esp_err_to_name(error->esp_tls_last_esp_err),
                 (unsigned)error->esp_tls_stack_err, (unsigned)error->esp_tls_cert_verify_flags, error->esp_transport_sock_errno);
    else if (error->error_type == MQTT_ERROR_TYPE_CONNECTION_REFUSED)
        ESP_LOGE(TAG, "the gateway does not let this device in: return code %d", (int)error->connect_return_code);
}

/* Runs in the client's task: short, and it must not wait. */
static void on_mqtt(void *context, esp_event_base_t base, int32_t id, void *data)
{
    esp_mqtt_event_handle_t event = data;
    (void)context;
    (void)base;
    switch ((esp_mqtt_event_id_t)id) {
    case MQTT_EVENT_CONNECTED:
        ESP_LOGI(TAG, "connected as %s, session present: %d", CONFIG_DEVICE_ID, event->session_present);
        steady_after = esp_timer_get_time() + CONFIG_DEVICE_KEEPALIVE * 1000000LL;
        esp_mqtt_client_subscribe(event->client, HOME "/set/#", 1);
        xEventGroupSetBits(state, CONNECTED);
        break;
    case MQTT_EVENT_DATA:
        /* Larger ones than the buffer come in pieces; a command is never that long. */
        if (event->data_len != event->total_data_len)
            ESP_LOGW(TAG, "a message of %d bytes is too long", event->total_data_len);
        else
            ESP_LOGI(TAG, "message %.*s %.*s", event->topic_len, event->topic, event->data_len, event->data);
        break;
    case MQTT_EVENT_PUBLISHED:
        ESP_LOGI(TAG, "acknowledged %d", event->msg_id);
        break;
    case MQTT_EVENT_ERROR:
        on_error(event->error_handle);
        break;
    case MQTT_EVENT_DISCONNECTED:
        /* Comes after a failed attempt, too. */
        xEventGroupClearBits(state, CONNECTED);
        xEventGroupSetBits(state, ENDED);
        break;
    default:
        break;
    }
}

static esp_mqtt_client_handle_t start_mqtt(void)
{
    esp_mqtt_client_config_t config = {
        .broker.address.uri = CONFIG_DEVICE_GATEWAY,
        /* Without it, or with skip_cert_common_name_check, anybody could be the gateway. */
        .broker.verification.certificate = ca_pem,
        .credentials.client_id = CONFIG_DEVICE_ID,
        .credentials.authentication.certificate = client_pem,
        .credentials.authentication.key = client_key,
        .session.keepalive = CONFIG_DEVICE_KEEPALIVE,
        /* The session outlives a connection, so that nothing is missed in between. */
        .session.disable_clean_session = true,
        .network.disable_auto_reconnect = true,
    };
    esp_mqtt_client_handle_t client = esp_mqtt_client_init(&config);
    if (client == NULL) {
        ESP_LOGE(TAG, "the configuration is not right: look at the URI");
        abort();
    }
    ESP_ERROR_CHECK(esp_mqtt_client_register_event(client, ESP_EVENT_ANY_ID, on_mqtt, NULL));
    ESP_ERROR_CHECK(esp_mqtt_client_start(client));
    return client;
}

static void report(esp_mqtt_client_handle_t client)
{
    char payload[32];
    snprintf(payload, sizeof payload, "{\"w\":%u}", (unsigned)(200 + esp_random() % 60));
    if (esp_mqtt_client_publish(client, HOME "/power", payload, 0, 1, 0) < 0)
        ESP_LOGW(TAG, "not published");
}

/* A fleet that lost its gateway at one moment must not come back at one moment. MQTT has no word for "come back after". */
static void come_back(esp_mqtt_client_handle_t client, unsigned failures)
{
    uint32_t span = failures > 8 ? SPAN_MAX_MS : 1000u << failures;
    uint32_t wait = esp_random() % span;
    ESP_LOGI(TAG, "coming back in %" PRIu32 " ms", wait);
    vTaskDelay(pdMS_TO_TICKS(wait));
    xEventGroupWaitBits(state, HAS_ADDRESS, pdFALSE, pdTRUE, portMAX_DELAY);
    while (esp_mqtt_client_reconnect(client) != ESP_OK)
        vTaskDelay(pdMS_TO_TICKS(1000));
}

void app_main(void)
{
    unsigned failures = 0;
    esp_mqtt_client_handle_t client;
    state = xEventGroupCreate();
    ESP_ERROR_CHECK(nvs_flash_init());
    start_wifi();
    xEventGroupWaitBits(state, HAS_ADDRESS, pdFALSE, pdTRUE, portMAX_DELAY);
    client = start_mqtt();
    for (;;) {
        EventBits_t bits = xEventGroupWaitBits(state, ENDED, pdTRUE, pdTRUE, pdMS_TO_TICKS(CONFIG_DEVICE_REPORT * 1000));
        if (bits & ENDED) {
            failures = steady_after != 0 && esp_timer_get_time() >= steady_after ? 0 : failures + 1;
            steady_after = 0;
            come_back(client, failures);
        } else if (bits & CONNECTED) {
            report(client);
        }
    }
}
