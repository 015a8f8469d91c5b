package order

func DecodeRow(text []byte, rules *Rules) (*Request, string, Faults) {
	r, f := Decode(text, rules)
	return r, "", f
}
func PrintedName([]byte) string { return "" }
