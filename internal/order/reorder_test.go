package order_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"cardorder/internal/order"
)

// original is an order as it was stored: the example of one, with all that is kept of it.
func original(t *testing.T) order.Original {
	t.Helper()
	text := `{"cardId":"card-1","consumerId":"consumer-1","cardProductId":"gold","issuerRequestId":"request-1","distributionChannel":"THALES",
		"services":{"issuance":"CREATION","delivery":"POST","cardCarrier":"WELCOME","packaging":"BOX","pinMailer":true},
		"paymentApplication":{"config":"visa","odaKeyIndex":"1","derivationKeyIndex":"1"},
		"cardDesign":{"customLines":["ADA"],"memberId":"7"},"cardCarrierConfig":{"language":"fr"},"packagingConfig":{"inserts":["flyer"]},
		"shipment":{"deliveryAddress":{"firstName":"Ada","lastName":"Example","line1":"1 Rue de la Paix","zipCode":"75002","city":"Paris","countryCode":"FR"},
			"individualAddress":{"firstName":"Ada","lastName":"Example","line1":"1 Rue de la Paix","zipCode":"75002","city":"Paris","countryCode":"FR"}},
		"metadata":{"campaign":"spring"},"urgent":true,"encryptedData":"` + anyJWE + `"}`
	r, faults := order.Decode([]byte(text), &order.Rules{})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	// It rests as JSON.
	body, err := r.Production.Body()
	if err != nil {
		t.Fatal(err)
	}
	o := order.Original{ID: "01990a68-77ec-74e1-b66d-6c97bb9262a5", CardID: r.CardID, Metadata: r.Metadata, Urgent: r.Urgent}
	if err := json.Unmarshal(body, &o.Production); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestReorderAgain(t *testing.T) {
	t.Parallel()
	o := original(t)
	request, faults := order.Reorder{}.Again(o, &order.Rules{})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	want := o.Production
	want.IssuerRequestID = ""
	if !reflect.DeepEqual(request.Production, want) || request.CardID != o.CardID || !request.Urgent || request.Metadata["campaign"] != "spring" ||
		request.ReplacesOrderID != o.ID || request.EndsAt != order.Shipped || request.Canonical == nil {
		t.Errorf("as it was: %#v", request)
	}
	same, _ := order.Reorder{EncryptedData: anyJWE, DuplicateOverride: "lost", Reason: "moved"}.Again(o, &order.Rules{})
	if string(same.Canonical) != string(request.Canonical) || same.DuplicateOverride != "lost" {
		t.Error("card data and reasons are compared")
	}

	address := &order.Address{Line1: "2 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR"}
	moved, faults := order.Reorder{IssuerRequestID: "request-2", DeliveryAddress: address}.Again(o, &order.Rules{})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	s := moved.Production.Shipment
	if *s.DeliveryAddress != *address || *s.IndividualAddress != *address || moved.Production.IssuerRequestID != "request-2" || string(moved.Canonical) == string(request.Canonical) {
		t.Errorf("to another address: %#v", moved.Production)
	}
	o.Production.Shipment.IndividualAddress.City = "Lyon" // the cardholder's own
	if moved, _ = (order.Reorder{DeliveryAddress: address}).Again(o, &order.Rules{}); moved.Production.Shipment.IndividualAddress.City != "Lyon" {
		t.Error("an address of its own was replaced")
	}
	if o.Production.Shipment.DeliveryAddress.Line1 != "1 Rue de la Paix" {
		t.Error("the first order was changed")
	}
	if strings.Contains(fmt.Sprintf("%v %+v %v", o, o, order.Reorder{DeliveryAddress: address}), "Rue") {
		t.Error("it prints")
	}
}

func TestReorderMeetsTodaysRules(t *testing.T) {
	t.Parallel()
	rules := &order.Rules{Programs: map[string]*order.Program{"gold": {DestinationCountries: []string{"FR"}, CardCarriers: []string{"NEW"}}}}
	address := &order.Address{Line1: "x", ZipCode: "1", City: "x", CountryCode: "DE"}
	for name, test := range map[string]struct {
		change  func(*order.Original)
		reorder order.Reorder
		want    string
	}{
		"the address and the content": {func(*order.Original) {}, order.Reorder{DeliveryAddress: address},
			"/services/cardCarrier outside-program, /deliveryAddress/countryCode outside-program"},
		"its own address": {func(o *order.Original) {
			o.Production.Services.CardCarrier, o.Production.Shipment.DeliveryAddress = "NEW", address
		}, order.Reorder{},
			"/shipment/deliveryAddress/countryCode outside-program"},
		"no card data": {func(o *order.Original) { o.Production.Services.CardCarrier, o.Production.EncryptedData = "NEW", "" }, order.Reorder{},
			"/encryptedData required"},
		"no shipment": {func(o *order.Original) { o.Production.Shipment = nil }, order.Reorder{DeliveryAddress: address}, "/deliveryAddress not-allowed"},
	} {
		o := original(t)
		test.change(&o)
		_, faults := test.reorder.Again(o, rules)
		var got []string
		for _, f := range faults {
			got = append(got, f.Pointer+" "+f.Code)
		}
		if strings.Join(got, ", ") != test.want {
			t.Errorf("%s: %v, want %s", name, got, test.want)
		}
	}
}
