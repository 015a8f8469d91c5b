package client_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"testing"

	"cardorder/client"
)

// secret stands for what must not be printed, cardData for what is not even
// written as JSON. It is the networks' published test number.
const (
	secret   = "SECRET"
	cardData = "4111111111111111"
)

// sensitive is an order that is full of it.
func sensitive() *client.NewOrder {
	address := &client.Address{FirstName: secret, LastName: secret, Line1: secret, MobilePhoneNumber: secret}
	return &client.NewOrder{
		CardID: "card-1", IssuerRequestID: "request-1", EncryptedData: secret,
		CardDesign:        &client.CardDesign{CustomLines: []string{secret}},
		CardCarrierConfig: &client.CardCarrierConfig{CustomLines: []string{secret}},
		Shipment:          &client.Shipment{DeliveryAddress: address, IndividualAddress: address},
		SensitiveData: &client.SensitiveData{
			PAN: cardData, Exp: cardData, Name: cardData, CVV2: cardData, TrackData: &client.TrackData{Track2: cardData},
		},
	}
}

func TestPersonalDataCannotBePrinted(t *testing.T) {
	t.Parallel()
	o := sensitive()
	token := client.NewToken(secret)
	cfg := client.Config{BaseURL: "https://cards.bank.example", IssuerID: "ISSUER0001", Token: token}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dry := &client.DryRun{PrintedName: secret}
	nested := struct {
		Pointer *client.NewOrder
		Value   client.NewOrder
		List    []client.NewOrder
		Config  client.Config
		Card    *client.SensitiveData
		Retry   client.Retry
		Change  client.NewChange
	}{
		o, *o, []client.NewOrder{*o}, cfg, o.SensitiveData,
		client.Retry{EncryptedData: secret, DuplicateOverride: &client.DuplicateOverride{Reason: secret}},
		client.NewChange{NewDeliveryAddress: o.Shipment.DeliveryAddress, Note: secret},
	}
	hidden := struct { // fmt calls no methods here
		token  client.Token
		client *client.Client
	}{token, c}
	shows := func(text string, secrets ...string) bool {
		for _, s := range secrets {
			if strings.Contains(text, s) || strings.Contains(text, fmt.Sprintf("%x", s)) {
				return true
			}
		}
		return false
	}
	ownWords := []any{
		o, *o, o.Shipment.DeliveryAddress, *o.Shipment.DeliveryAddress, o.CardDesign, *o.CardDesign, o.CardCarrierConfig, *o.CardCarrierConfig,
		o.SensitiveData, *o.SensitiveData, o.SensitiveData.TrackData, *o.SensitiveData.TrackData, dry, *dry, token, &token, cfg, &cfg, c, *c,
	}
	holders := []any{o.Shipment, *o.Shipment, nested, &nested, hidden}
	for _, v := range append(holders, ownWords...) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if text := fmt.Sprintf(verb, v); shows(text, secret, cardData) {
				t.Errorf("%s of %T shows it: %s", verb, v, text)
			}
		}
	}
	logged := func(v any, handler func(io.Writer) slog.Handler) string {
		var log bytes.Buffer
		slog.New(handler(&log)).Info("x", "v", v)
		return log.String()
	}
	asText := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) }
	asJSON := func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) }
	for _, v := range append(holders, ownWords...) {
		if text := logged(v, asText); shows(text, secret, cardData) {
			t.Errorf("a log shows %T: %s", v, text)
		}
		if text := logged(v, asJSON); shows(text, cardData) {
			t.Errorf("a log shows card data of %T: %s", v, text)
		}
	}
	for _, v := range ownWords { // an order deep inside of something is a line of a batch as JSON
		if text := logged(v, asJSON); shows(text, secret) {
			t.Errorf("a log shows %T: %s", v, text)
		}
	}
}

// Card data becomes JSON in the body of a call, and nowhere else.
func TestCardDataAsJSON(t *testing.T) {
	t.Parallel()
	o := sensitive()
	o.SensitiveData.Exp, o.SensitiveData.Name, o.SensitiveData.CVV2 = "3012", "A", "987"
	var sent []byte
	c := newClient(t, roundTripper(func(r *http.Request) (*http.Response, error) {
		sent, _ = io.ReadAll(r.Body)
		return says(201, answered)(r)
	}))
	if _, err := c.PlaceOrder(t.Context(), o, ""); err != nil {
		t.Fatal(err)
	}
	var got struct {
		CardID        string `json:"cardId"`
		SensitiveData map[string]any
	}
	if err := json.Unmarshal(sent, &got); err != nil || got.CardID != "card-1" || fmt.Sprint(got.SensitiveData) !=
		"map[cvv2:987 exp:3012 name:A pan:"+cardData+" trackData:map[track2:"+cardData+"]]" {
		t.Errorf("sent: %s, %v", sent, err)
	}
	for _, v := range []any{o.SensitiveData, *o.SensitiveData, o.SensitiveData.TrackData} {
		if text, err := json.Marshal(v); err != nil || string(text) != `"[redacted]"` {
			t.Errorf("%T: %s, %v", v, text, err)
		}
	}
	if text, err := json.Marshal(o); err != nil || strings.Contains(string(text), cardData) {
		t.Errorf("an order: %s, %v", text, err)
	}
}

// An order as JSON is a line of a batch: members that are not given are not there.
func TestOrderAsJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(client.NewOrder{
		CardID: "card-1", IssuerRequestID: "r-1", DistributionChannel: client.ChannelInstant, PersoStation: "p",
		Services: client.Services{Issuance: client.IssuanceRenewal}, EncryptedData: "jwe",
	})
	const want = `{"cardId":"card-1","issuerRequestId":"r-1","distributionChannel":"INSTANT","services":{"issuance":"RENEWAL"},"persoStation":"p","encryptedData":"jwe"}`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := client.Config{BaseURL: "https://cards.bank.example/base/", IssuerID: "ISSUER0001", Token: client.NewToken("x")}
	if _, err := client.New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*client.Config){
		"no URL":           func(c *client.Config) { c.BaseURL = "" },
		"no scheme":        func(c *client.Config) { c.BaseURL = "cards.bank.example" },
		"another scheme":   func(c *client.Config) { c.BaseURL = "ftp://cards.bank.example" },
		"a password":       func(c *client.Config) { c.BaseURL = "https://u:" + secret + "@cards.bank.example" },
		"a broken one":     func(c *client.Config) { c.BaseURL = "https://u:" + secret + "%@cards.bank.example" },
		"a query":          func(c *client.Config) { c.BaseURL += "?x=" + secret },
		"no issuer":        func(c *client.Config) { c.IssuerID = "" },
		"no token":         func(c *client.Config) { c.Token = client.Token{} },
		"a token in lines": func(c *client.Config) { c.Token = client.NewToken(secret + "\n") },
		"a past timeout":   func(c *client.Config) { c.Timeout = -1 },
		"a past backoff":   func(c *client.Config) { c.Backoff = -1 },
		"a past wait":      func(c *client.Config) { c.MaxWait = -1 },
		"an endless wait":  func(c *client.Config) { c.MaxWait = math.MaxInt64 },
		"minus one":        func(c *client.Config) { c.MaxAttempts = -1 },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := client.New(cfg); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
