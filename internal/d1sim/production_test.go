package d1sim_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"cardorder/internal/d1sim"

	"github.com/go-jose/go-jose/v4"
)

func TestOrderIsAccepted(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	for name, change := range map[string]func(order map[string]any){
		"THALES": func(map[string]any) {},
		"THALES with everything": func(o map[string]any) {
			o["services"] = map[string]any{"issuance": "RENEWAL", "priority": "HIGH", "delivery": "EXPRESS",
				"cardCarrier": "LETTER", "packaging": "BOX", "pinMailer": false, "alphaCard": true}
			o["paymentApplication"].(map[string]any)["cvKeyIndex"] = "03"
			o["paymentApplication"].(map[string]any)["pvKeyIndex"] = "04"
			o["cardDesign"] = map[string]any{"cardImage": "i", "images": []string{"a"}, "customLines": []string{"l"}, "memberId": "m"}
			o["cardCarrierConfig"] = map[string]any{"language": "fr", "images": []string{"a"}, "customLines": []string{"l"}}
			o["packagingConfig"] = map[string]any{"inserts": []string{"leaflet"}}
			o["state"], o["oldCardId"] = "ACTIVE", "card-0"
			o["encryptedData"] = b.encrypt(map[string]any{"pan": "5555555555554444", "exp": "3001", "name": "N", "secondName": "S",
				"encodedName": "E", "cvv1": "1", "cvv2": "2", "pvv": "3", "paymentAccountReference": "R", "effectiveDate": "2601",
				"panSequenceNumber": "00", "trackData": map[string]any{"track1": "1", "track2": "2", "track3": "3"}})
			address := o["shipment"].(map[string]any)["deliveryAddress"].(map[string]any)
			maps.Copy(address, map[string]any{"title": "Dr", "firstName": "A", "lastName": "B", "companyName": "C", "line2": "2",
				"line3": "3", "state": "S", "mobilePhoneNumber": "+32470123456"})
			o["shipment"] = map[string]any{"type": "BULK", "deliveryAddress": address, "individualAddress": address,
				"groupId": "g", "orderId": "o"}
		},
		"INSTANT": func(o map[string]any) {
			o["distributionChannel"], o["persoStation"] = "INSTANT", "station-7"
			delete(o, "shipment")
		},
		"CENTRAL": func(o map[string]any) {
			o["distributionChannel"] = "CENTRAL"
			delete(o, "shipment")
		},
		"without issuerRequestId": func(o map[string]any) { delete(o, "issuerRequestId") },
	} {
		order := b.thales(strings.ReplaceAll(name, " ", "-"))
		change(order)
		got := b.order("card-1", order)
		if got.status != http.StatusAccepted || got.json(t)["operationId"] == "" || got.header.Get("X-Simulator") != "d1sim" {
			t.Errorf("%s: got %d %s", name, got.status, got.body)
		}
	}
	if got := len(b.sim.Cards()); got != 5 {
		t.Errorf("%d cards made, want 5", got)
	}
}

func TestOrderIsRefused(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	key := b.sim.EncryptionKey()
	to := jose.Recipient{Algorithm: jose.ECDH_ES, Key: key.Key, KeyID: key.KeyID}
	const good = `{"pan":"4111111111111111","exp":"3012"}`

	set := func(path string, value any) func(map[string]any) {
		return func(o map[string]any) {
			names := strings.Split(path, ".")
			for _, name := range names[:len(names)-1] {
				o = o[name].(map[string]any)
			}
			if o[names[len(names)-1]] = value; value == nil {
				delete(o, names[len(names)-1])
			}
		}
	}
	cardData := func(data string) func(map[string]any) {
		return set("encryptedData", encryptFor(t, to, jose.A256GCM, data))
	}
	const (
		format = "FIELD_INVALID_FORMAT"
		value  = "FIELD_INVALID_VALUE"
		crypto = "CRYPTO_ERROR"
	)
	for i, c := range []struct {
		change func(map[string]any)
		code   string
		field  string // that the error text begins with
	}{
		{set("distributionChannel", nil), value, "distributionChannel"},
		{set("distributionChannel", "POST"), value, "distributionChannel"},
		{set("distributionChannel", 1), format, "distributionChannel"},
		{set("issuerRequestId", "a b"), format, "issuerRequestId"},
		{set("issuerRequestId", strings.Repeat("x", 65)), format, "issuerRequestId"},
		{set("consumerId", nil), value, "consumerId"},
		{set("consumerId", strings.Repeat("x", 65)), format, "consumerId"},
		{set("cardProductId", nil), value, "cardProductId"},
		{set("cardProductId", strings.Repeat("x", 49)), format, "cardProductId"},
		{set("services", nil), value, "services"},
		{set("services", "x"), format, "services"},
		{set("services.issuance", nil), value, "services.issuance"},
		{set("services.issuance", "creation"), value, "services.issuance"},
		{set("services.pinMailer", "true"), format, "services.pinMailer"},
		{set("services.delivery", ""), format, "services.delivery"},
		{set("services.urgent", true), value, "services.urgent"},
		{set("paymentApplication", nil), value, "paymentApplication"},
		{set("paymentApplication.odaKeyIndex", 1), format, "paymentApplication.odaKeyIndex"},
		{set("cardDesign", map[string]any{"images": "x"}), format, "cardDesign.images"},
		{set("cardDesign", map[string]any{"customLines": []any{1}}), format, "cardDesign.customLines"},
		{set("cardCarrierConfig", map[string]any{"language": "FR"}), format, "cardCarrierConfig.language"},
		{set("packagingConfig", map[string]any{"inserts": "x"}), format, "packagingConfig.inserts"},
		{set("shipment", nil), value, "shipment"},
		{set("shipment.type", "SINGLE"), value, "shipment.type"},
		{set("shipment.deliveryAddress", nil), value, "shipment.deliveryAddress"},
		{set("shipment.deliveryAddress.line1", nil), value, "shipment.deliveryAddress.line1"},
		{set("shipment.deliveryAddress.line1", strings.Repeat("é", 65)), format, "shipment.deliveryAddress.line1"},
		{set("shipment.deliveryAddress.countryCode", "BEL"), value, "shipment.deliveryAddress.countryCode"},
		{set("shipment.deliveryAddress.countryCode", "XX"), value, "shipment.deliveryAddress.countryCode"},
		{set("shipment.deliveryAddress.mobilePhoneNumber", "0470"), format, "shipment.deliveryAddress.mobilePhoneNumber"},
		{set("shipment.groupId", "g"), value, "shipment.groupId"},
		{set("persoStation", "station-7"), value, "persoStation"},
		{set("hold", true), value, "hold"},
		{set("cardId", "card-1"), value, "cardId"},
		{set("state", 1), format, "state"},
		{set("oldCardId", "a b"), format, "oldCardId"},
		{set("encryptedData", nil), value, "encryptedData"},
		{set("encryptedData", strings.Repeat("x", 8193)), format, "encryptedData"},
		{set("encryptedData", "a.b.c.d.e"), crypto, "encryptedData"},
		{set("encryptedData", encryptFor(t, jose.Recipient{Algorithm: jose.ECDH_ES, Key: key.Key}, jose.A256GCM, good)), crypto, "encryptedData"},
		{set("encryptedData", encryptFor(t, jose.Recipient{Algorithm: jose.ECDH_ES, Key: key.Key, KeyID: "x"}, jose.A256GCM, good)), crypto, "encryptedData"},
		{set("encryptedData", encryptFor(t, jose.Recipient{Algorithm: jose.ECDH_ES, Key: &newKey(t).PublicKey, KeyID: key.KeyID}, jose.A256GCM, good)), crypto, "encryptedData"},
		{set("encryptedData", encryptFor(t, to, jose.A128GCM, good)), crypto, "encryptedData"},
		{set("encryptedData", encryptFor(t, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: key.Key, KeyID: key.KeyID}, jose.A256GCM, good)), crypto, "encryptedData"},
		{cardData("4111111111111111"), "PARSING_ERROR", "encryptedData"},
		{cardData(`null`), "PARSING_ERROR", "encryptedData"},
		{cardData(good + good), "PARSING_ERROR", "encryptedData"},
		{cardData(`{"exp":"3012"}`), value, "pan"},
		{cardData(`{"pan":4111111111111111,"exp":"3012"}`), format, "pan"},
		{cardData(`{"pan":"411111111","exp":"3012"}`), format, "pan"},
		{cardData(`{"pan":"4111111111111112","exp":"3012"}`), value, "pan"},
		{cardData(`{"pan":"4111111111111111"}`), value, "exp"},
		{cardData(`{"pan":"4111111111111111","exp":"1230"}`), format, "exp"},
		{cardData(`{"pan":"4111111111111111","exp":"3012","name":"` + strings.Repeat("N", 27) + `"}`), format, "name"},
		{cardData(`{"pan":"4111111111111111","exp":"3012","trackData":"x"}`), format, "trackData"},
		{cardData(`{"pan":"4111111111111111","exp":"3012","4111111111111111":"x"}`), value, "encryptedData"},
	} {
		order := b.thales("request-1")
		c.change(order)
		got := b.order("card-1", order)
		body := got.json(t)
		text, _ := body["error"].(string)
		if got.status != http.StatusBadRequest || body["errorCode"] != c.code || !strings.HasPrefix(text, c.field+":") {
			t.Errorf("case %d: got %d %s, want %s of %s", i, got.status, got.body, c.code, c.field)
		}
	}

	for name, c := range map[string]struct {
		cardID, header, value, body string
	}{
		"cardId":         {strings.Repeat("c", 49), "", "", ""},
		"correlation id": {"card-1", "X-Correlation-Id", "a b", ""},
		"content type":   {"card-1", "Content-Type", "text/json", ""},
		"not JSON":       {"card-1", "", "", "{"},
		"not an object":  {"card-1", "", "", "[]"},
		"null":           {"card-1", "", "", "null"},
		"two objects":    {"card-1", "", "", "{}{}"},
		"too long":       {"card-1", "", "", strings.Repeat(" ", 2<<20)},
	} {
		header := b.header()
		if c.header != "" {
			header.Set(c.header, c.value)
		}
		body := c.body
		if body == "" {
			body = toJSON(t, b.thales("request-1"))
		}
		if got := b.send(http.MethodPost, productionURL(c.cardID), body, header); got.status != http.StatusBadRequest {
			t.Errorf("%s: got %d %s %v", name, got.status, got.body, got.err)
		}
	}
	if got := b.sim.Cards(); len(got) != 0 {
		t.Errorf("cards made of refused orders: %v", got)
	}
}

func TestSettingsOfTheContract(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	bare := b.thales("request-1")
	delete(bare, "consumerId")
	delete(bare, "cardProductId")
	b.set(func(s *d1sim.Settings) { s.ConsumerAndProductOptional = true })
	b.accepted("card-1", bare)

	b.set(func(s *d1sim.Settings) { s.RequireIndividualAddress = true })
	order := b.thales("request-2")
	if got := b.order("card-2", order); got.status != http.StatusBadRequest {
		t.Errorf("without individualAddress: got %d %s", got.status, got.body)
	}
	shipment := order["shipment"].(map[string]any)
	shipment["individualAddress"] = shipment["deliveryAddress"]
	b.accepted("card-2", order)
}

func TestRepeat(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]struct {
		status, cards int
		sameOperation bool
	}{
		"":                     {202, 1, true},
		d1sim.RepeatSame:       {202, 1, true},
		d1sim.RepeatSecondCard: {202, 2, false},
		d1sim.RepeatConflict:   {409, 1, false},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := newBureau(t, d1sim.Settings{StopAt: d1sim.CardProdRequested, Repeat: mode})
			first := b.accepted("card-1", b.thales("request-1"))
			again := b.order("card-1", b.thales("request-1"))
			if again.status != want.status || (again.json(t)["operationId"] == first) != want.sameOperation {
				t.Errorf("got %d %s after operation %s", again.status, again.body, first)
			}
			if got := b.sim.CardCounts()["request-1"]; got != want.cards {
				t.Errorf("%d cards made, want %d", got, want.cards)
			}
			if got := b.order("card-2", b.thales("request-1")); got.status != http.StatusConflict {
				t.Errorf("same issuerRequestId for another card: got %d", got.status)
			}
		})
	}
}

func TestHistoryTellsIDsOnly(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	header := b.header()
	header.Set("X-Correlation-Id", "corr-1")
	order := b.thales("request-1")
	got := b.send(http.MethodPost, productionURL("card-1"), toJSON(t, order), header)
	delete(order, "services")
	b.order("card-1", order)
	b.productionStatus("card-1")

	history := b.sim.History(d1sim.Filter{})
	if len(history) != 4 || history[0].Kind != d1sim.KindToken || history[0].IssuerID != issuerID {
		t.Fatalf("history: %+v", history)
	}
	made := history[1]
	if made.Kind != d1sim.KindProduction || made.IssuerID != issuerID || made.CardID != "card-1" || made.Status != 202 ||
		made.IssuerRequestID != "request-1" || made.CorrelationID != "corr-1" || !made.CardMade ||
		made.OperationID != got.json(t)["operationId"] {
		t.Errorf("order in the history: %+v", made)
	}
	if refused := history[2]; refused.Status != 400 || refused.CardMade || refused.ErrorCode != "FIELD_INVALID_VALUE" {
		t.Errorf("refused order in the history: %+v", refused)
	}
	if got := len(b.sim.History(d1sim.Filter{Kind: d1sim.KindProduction, IssuerRequestID: "request-1"})); got != 2 {
		t.Errorf("%d orders of request-1 in the history, want 2", got)
	}
	if text := fmt.Sprintf("%+v %+v", history, b.sim.Cards()); strings.Contains(text, "4111111111111111") || strings.Contains(text, "Example") {
		t.Error("content in the history")
	}
}
