package order_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"cardorder/internal/order"
)

// What holds personal or card data cannot be printed, not even by accident.
func TestPersonalDataCannotBePrinted(t *testing.T) {
	t.Parallel()
	const secret = "SECRET"
	address := &order.Address{LastName: secret, Line1: secret}
	request := &order.Request{CardID: "card", SensitiveData: []byte(secret), Canonical: []byte(secret), Production: order.Production{
		EncryptedData: secret, Shipment: &order.Shipment{DeliveryAddress: address},
		CardDesign:        &order.CardDesign{CustomLines: []string{secret}},
		CardCarrierConfig: &order.CardCarrierConfig{CustomLines: []string{secret}},
	}}
	nested := struct {
		Request    *order.Request
		Value      order.Request
		Production order.Production
		Shipment   order.Shipment
	}{request, *request, request.Production, *request.Production.Shipment}
	for _, v := range []any{request, *request, request.Production, &request.Production, address, *address, nested, &nested, request.Production.CardDesign} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", secret)) {
				t.Errorf("%s of %T shows it: %s", verb, v, text)
			}
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "request", request, "production", request.Production, "address", address)
	if strings.Contains(log.String(), secret) {
		t.Errorf("the log shows it: %s", log.String())
	}
}
