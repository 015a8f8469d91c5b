package order

// Import is an order that an older system placed at D1, as far as that one knows it. It
// is never sent from here.
type Import struct {
	CardID          string
	OperationID     string // D1's; this or IssuerRequestID is there
	IssuerRequestID string
	Status          string // where it stands: a status of this service, or D1's details.status
	ConsumerID      string
	CardProductID   string
	Channel         Channel
	Issuance        Issuance // "" when nobody knows
	EndsAt          Status   // the status at which it arrives
}

// ImportMembers are the members of an Import, as a file names them.
var ImportMembers = []string{
	"cardId", "operationId", "issuerRequestId", "status", "consumerId", "cardProductId", "distributionChannel", "issuance",
}

// DecodeImport reads one order of an import, a JSON object of texts, and returns every
// fault there is.
func DecodeImport(text []byte, rules *Rules) (Import, Faults) {
	var in Import
	d := newDocument(text, rules)
	defer d.release()
	root, ok := d.root()
	if !ok {
		return in, d.faults
	}
	in = Import{
		CardID:          root.need("cardId", cardID),
		OperationID:     root.text("operationId", operationID),
		IssuerRequestID: root.text("issuerRequestId", issuerRequestID),
		Status:          root.need("status", importedStatus),
		ConsumerID:      root.text("consumerId", consumerID),
		CardProductID:   root.text("cardProductId", cardProductID),
		Channel:         Channel(root.text("distributionChannel", channel)),
		Issuance:        Issuance(root.text("issuance", issuance)),
	}
	if !root.has("operationId") && !root.has("issuerRequestId") {
		d.fault("", CodeRequired, "an operationId or an issuerRequestId is required: notifications find the order by them")
	}
	root.closeAs("an import")
	if in.Channel == "" {
		in.Channel = ChannelThales // D1's default
	}
	if in.EndsAt = Produced; in.Channel == ChannelThales {
		in.EndsAt = Shipped
	}
	if program := rules.Programs[in.CardProductID]; program != nil && program.EndsAt != "" {
		in.EndsAt = program.EndsAt
	}
	return in, d.faults
}

// atD1 are the places that a status of this service stands for, of orders that D1 has.
var atD1 = func() map[string]place {
	m := make(map[string]place)
	for _, p := range append([]place{onHold, failed, delivered}, places["DATA_EXCEPTION"]) {
		m[string(p.status)] = p
	}
	for word, p := range places {
		if p.status != Exception {
			m[string(p.status)] = p
		}
		m[word] = p
	}
	return m
}()

// importedStatus lists the words in the order of Statuses; D1's own are taken as well.
var importedStatus = func() textRule {
	var known []Status
	for _, s := range Statuses {
		if _, ok := atD1[string(s)]; ok {
			known = append(known, s)
		}
	}
	rule := oneOf(known...)
	return textRule{check: func(s string) (string, string) {
		if _, ok := atD1[s]; ok {
			return "", ""
		}
		code, detail := rule.check("")
		return code, detail + ", or D1's details.status"
	}}
}()

// Imported is what an older system knows of an order.
type Imported struct{ OperationID, Status string }

func (i Imported) apply(s *State) {
	s.adopt(i.OperationID)
	p := atD1[i.Status]
	s.reach(p)
	if p.kind == away { // of one parcel, nobody knows which
		s.hear("", p)
		s.settleParcels()
	}
	if a := attentionOf[s.Status]; a != "" && s.Ended() {
		s.Acknowledged = append(s.Acknowledged, a) // that one's people have dealt with it
	}
}
