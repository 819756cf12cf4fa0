package builtins

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"go.starlark.net/starlark"
)

// This file defines the constructors of what a sandbox's proxy_config and
// mount_config are made of, and the rules for both (protocol.md §2.11, §2.12,
// §16.10). What they make are dicts, as in the SDK: a header rule is written as
// one by hand, and what the constructors do not know can be added.

// newConfigs are the constructors by name.
func newConfigs() starlark.StringDict {
	all := starlark.StringDict{}
	for name, fn := range map[string]builtinFunc{
		"workspace_secret": workspaceSecret, "opaque_secret": opaqueSecret,
		"aws_auth": awsAuth, "gcp_auth": gcpAuth, "proxy_config": proxyConfig,
		"s3_mount": s3Mount, "gcs_mount": gcsMount, "git_mount": gitMount, "context_hub_mount": contextHubMount,
		"mount_config": mountConfig,
	} {
		all[name] = builtin(name, fn)
	}
	return all
}

// A pair is an entry of a dict to be made.
type pair struct {
	key   string
	value starlark.Value // nil is no entry
}

func newDict(pairs ...pair) *starlark.Dict {
	d := new(starlark.Dict)
	for _, p := range pairs {
		if p.value != nil {
			d.SetKey(starlark.String(p.key), p.value)
		}
	}
	return d
}

// member is the entry of a dict; nil if there is none, or None, or no dict.
func member(v starlark.Value, key string) starlark.Value {
	if m, ok := v.(starlark.Mapping); ok {
		if found, ok, _ := m.Get(starlark.String(key)); ok && found != starlark.None {
			return found
		}
	}
	return nil
}

func isString(v starlark.Value, s string) bool { return v == starlark.String(s) }

// absent tells whether a field counts as not given.
func absent(v starlark.Value) bool { return v == nil || isString(v, "") }

// text is a string without blanks around it that is not empty.
type text string

func (t *text) Unpack(v starlark.Value) error {
	s, ok := starlark.AsString(v)
	if !ok {
		return fmt.Errorf("got %s, want a string", v.Type())
	}
	if s = strings.TrimSpace(s); s == "" {
		return fmt.Errorf("it is blank")
	}
	*t = text(s)
	return nil
}

func (t text) value() starlark.Value { return starlark.String(t) }

// entryOf is the value of an optional text, or nil.
func entryOf(t optional[text]) starlark.Value {
	if t.ptr == nil {
		return nil
	}
	return t.ptr.value()
}

// texts is a list of texts that is not empty; nil for None.
type texts struct{ list *starlark.List }

func (t *texts) Unpack(v starlark.Value) error {
	t.list = nil
	if v == starlark.None {
		return nil
	}
	elements, ok := v.(starlark.Sequence)
	if !ok || elements.Len() == 0 {
		return fmt.Errorf("want a list of strings that is not empty")
	}
	t.list = starlark.NewList(nil)
	for element := range starlark.Elements(elements) {
		var one text
		if err := one.Unpack(element); err != nil {
			return fmt.Errorf("element %d: %w", t.list.Len(), err)
		}
		t.list.Append(one.value())
	}
	return nil
}

func (t texts) value() starlark.Value {
	if t.list == nil {
		return nil
	}
	return t.list
}

// textDict is a dict of names and texts that is not empty: the names without
// the blanks around them, the texts as they are. Nil for None.
type textDict struct{ dict *starlark.Dict }

func (d *textDict) Unpack(v starlark.Value) error {
	d.dict = nil
	if v == starlark.None {
		return nil
	}
	var given stringDict
	if err := given.Unpack(v); err != nil {
		return err
	}
	if len(given) == 0 {
		return fmt.Errorf("the dict is empty")
	}
	d.dict = new(starlark.Dict)
	for _, item := range v.(starlark.IterableMapping).Items() {
		var name, blank text
		if err := name.Unpack(item[0]); err != nil {
			return fmt.Errorf("a name: %w", err)
		}
		if err := blank.Unpack(item[1]); err != nil {
			return fmt.Errorf("the value of %q: %w", name, err)
		}
		d.dict.SetKey(name.value(), item[1])
	}
	return nil
}

func (d textDict) value() starlark.Value {
	if d.dict == nil {
		return nil
	}
	return d.dict
}

// secret is what workspace_secret and opaque_secret make, or nil for None and "".
type secret struct{ dict starlark.Value }

func (s *secret) Unpack(v starlark.Value) error {
	s.dict = nil
	if v == starlark.None || absent(v) {
		return nil
	}
	s.dict = v
	return checkSecret(v)
}

func checkSecret(v starlark.Value) error {
	if _, ok := v.(starlark.Mapping); !ok {
		return fmt.Errorf("want workspace_secret(…) or opaque_secret(…)")
	}
	if typ := member(v, "type"); !isString(typ, "workspace_secret") && !isString(typ, "opaque") {
		return fmt.Errorf(`the type of a secret is "workspace_secret" or "opaque"`)
	}
	value, ok := member(v, "value").(starlark.String)
	if !ok || strings.TrimSpace(string(value)) == "" {
		return fmt.Errorf("the value of a secret is a string that is not blank")
	}
	return nil
}

func workspaceSecret(c *invocation) (starlark.Value, error) {
	var name text
	if err := c.unpack(&name); err != nil {
		return nil, err
	}
	inner, opened := strings.CutPrefix(string(name), "{")
	inner, closed := strings.CutSuffix(inner, "}")
	if opened != closed {
		return nil, c.argumentError("parameter name: %q has one brace; want NAME or {NAME}", string(name))
	}
	if strings.TrimSpace(inner) == "" {
		return nil, c.argumentError("parameter name: %q has nothing between its braces", string(name))
	}
	return newDict(pair{"type", starlark.String("workspace_secret")}, pair{"value", starlark.String("{" + inner + "}")}), nil
}

func opaqueSecret(c *invocation) (starlark.Value, error) {
	var value text
	if err := c.unpack(&value); err != nil {
		return nil, err
	}
	return newDict(pair{"type", starlark.String("opaque")}, pair{"value", value.value()}), nil
}

func awsAuth(c *invocation) (starlark.Value, error) {
	var id, key secret
	var name text
	var enabled bool
	var env, tags textDict
	var role optional[string]
	if err := c.unpack(&id, &key, &name, &enabled, &env, &role, &tags); err != nil {
		return nil, err
	}
	block := newDict(pair{"access_key_id", id.dict}, pair{"secret_access_key", key.dict})
	if arn := strings.TrimSpace(role.or("")); arn != "" {
		block.SetKey(starlark.String("role_arn"), starlark.String(arn))
	}
	if tags.dict != nil {
		block.SetKey(starlark.String("session_tags"), tags.dict)
	}
	if err := checkAWS(block); err != nil {
		return nil, c.argumentError("%w", err)
	}
	return providerRule("aws", name, enabled, block, env), nil
}

// checkAWS is the rule for the credentials of AWS: a pair of keys, or a role.
func checkAWS(block starlark.Value) error {
	id, key, role, tags := member(block, "access_key_id"), member(block, "secret_access_key"), member(block, "role_arn"), member(block, "session_tags")
	var arn text
	switch {
	case absent(role) && tags != nil:
		return fmt.Errorf("session_tags need a role_arn")
	case absent(role) && (absent(id) || absent(key)):
		return fmt.Errorf("want access_key_id and secret_access_key, or role_arn")
	case absent(role):
		for name, s := range map[string]starlark.Value{"access_key_id": id, "secret_access_key": key} {
			if err := checkSecret(s); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	case !absent(id) || !absent(key):
		return fmt.Errorf("role_arn and the keys exclude each other")
	case tags != nil:
		if err := new(textDict).Unpack(tags); err != nil {
			return fmt.Errorf("session_tags: %w", err)
		}
	}
	if err := arn.Unpack(role); err != nil {
		return fmt.Errorf("role_arn: %w", err)
	}
	return nil
}

func gcpAuth(c *invocation) (starlark.Value, error) {
	var account secret
	var scopes texts
	var name text
	var enabled bool
	var env textDict
	if err := c.unpack(&account, &scopes, &name, &enabled, &env); err != nil {
		return nil, err
	}
	block := newDict(pair{"service_account_json", account.dict}, pair{"scopes", scopes.value()})
	if err := checkGCP(block); err != nil {
		return nil, c.argumentError("%w", err)
	}
	return providerRule("gcp", name, enabled, block, env), nil
}

func checkGCP(block starlark.Value) error {
	account := member(block, "service_account_json")
	if absent(account) {
		return fmt.Errorf("service_account_json is missing")
	}
	if err := checkSecret(account); err != nil {
		return fmt.Errorf("service_account_json: %w", err)
	}
	return nil
}

func providerRule(provider string, name text, enabled bool, block starlark.Value, env textDict) starlark.Value {
	return newDict(pair{"name", name.value()}, pair{"type", starlark.String(provider)}, pair{"enabled", starlark.Bool(enabled)},
		pair{provider, block}, pair{"env_vars", env.value()})
}

func proxyConfig(c *invocation) (starlark.Value, error) {
	var given, access starlark.Value
	var noProxy texts
	if err := c.unpack(&given, &noProxy, &access); err != nil {
		return nil, err
	}
	rules, err := listOfDicts(given)
	if err != nil {
		return nil, c.argumentError("parameter rules: %w", err)
	}
	for i, rule := range rules {
		if err := checkRule(rule); err != nil {
			return nil, c.argumentError("parameter rules: rule %d: %w", i, err)
		}
	}
	config := newDict(pair{"rules", starlark.NewList(rules)}, pair{"no_proxy", noProxy.value()})
	if access != starlark.None {
		lists, ok := access.(*starlark.Dict)
		if !ok {
			return nil, c.argumentError("parameter access_control: got %s, want a dict", access.Type())
		}
		if member(lists, "allow_list") != nil && member(lists, "deny_list") != nil {
			return nil, c.argumentError("parameter access_control: allow_list and deny_list exclude each other")
		}
		config.SetKey(starlark.String("access_control"), lists.Union(new(starlark.Dict)))
	}
	return config, nil
}

// listOfDicts are the elements of a list, each of them a dict that is not
// empty; none for None.
func listOfDicts(v starlark.Value) ([]starlark.Value, error) {
	if v == starlark.None {
		return nil, nil
	}
	list, ok := v.(starlark.Sequence)
	if _, isDict := v.(starlark.Mapping); !ok || isDict {
		return nil, fmt.Errorf("got %s, want a list of dicts", v.Type())
	}
	dicts := slices.Collect(starlark.Elements(list))
	for i, d := range dicts {
		if m, ok := d.(*starlark.Dict); !ok || m.Len() == 0 {
			return nil, fmt.Errorf("element %d is no dict, or an empty one", i)
		}
	}
	return dicts, nil
}

func checkRule(rule starlark.Value) error {
	switch member(rule, "type") {
	case starlark.String("aws"):
		return checkAWS(member(rule, "aws"))
	case starlark.String("gcp"):
		block := member(rule, "gcp")
		if err := checkGCP(block); err != nil {
			return err
		}
		scopes := member(block, "scopes")
		if scopes == nil {
			return fmt.Errorf("a gcp rule of a proxy needs scopes")
		}
		if err := new(texts).Unpack(scopes); err != nil {
			return fmt.Errorf("scopes: %w", err)
		}
	}
	return nil
}

// cache bounds what a bucket mount keeps locally: a dict, or nil for None.
type cache struct{ dict starlark.Value }

func (k *cache) Unpack(v starlark.Value) error {
	k.dict = nil
	if v == starlark.None {
		return nil
	}
	d, ok := v.(*starlark.Dict)
	if !ok {
		return fmt.Errorf("got %s, want a dict", v.Type())
	}
	names := []string{"max_size_bytes", "writeback_seconds"}
	for _, item := range d.Items() {
		name, _ := starlark.AsString(item[0])
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no key %s%s", item[0], DidYouMean("", name, names))
		}
		var n positive[int64]
		if err := n.Unpack(item[1]); err != nil || n.ptr == nil {
			return fmt.Errorf("%s: want a whole number above 0", name)
		}
	}
	k.dict = d
	return nil
}

// A mountBase is what all mounts have.
type mountBase struct{ id, path text }

func (m *mountBase) dict(typ string, block starlark.Value, more ...pair) starlark.Value {
	return newDict(append([]pair{{"id", m.id.value()}, {"type", starlark.String(typ)}, {"mount_path", m.path.value()}, {typ, block}}, more...)...)
}

// optionalBool is nil for None.
func optionalBool(b optional[bool]) starlark.Value {
	if b.ptr == nil {
		return nil
	}
	return starlark.Bool(*b.ptr)
}

func s3Mount(c *invocation) (starlark.Value, error) {
	var m mountBase
	var bucket, region, endpoint text
	var pathStyle bool
	var prefix, kmsKey optional[text]
	var readOnly optional[bool]
	var cached cache
	if err := c.unpack(&m.id, &m.path, &bucket, &region, &endpoint, &pathStyle, &prefix, &readOnly, &cached, &kmsKey); err != nil {
		return nil, err
	}
	block := newDict(pair{"endpoint_url", endpoint.value()}, pair{"region", region.value()}, pair{"bucket", bucket.value()},
		pair{"path_style", starlark.Bool(pathStyle)}, pair{"prefix", entryOf(prefix)})
	if kmsKey.ptr != nil {
		block.SetKey(starlark.String("encryption"), newDict(pair{"kms_key", entryOf(kmsKey)}))
	}
	return m.dict("s3", block, pair{"read_only", optionalBool(readOnly)}, pair{"cache", cached.dict}), nil
}

func gcsMount(c *invocation) (starlark.Value, error) {
	var m mountBase
	var bucket text
	var prefix optional[text]
	var readOnly optional[bool]
	var cached cache
	if err := c.unpack(&m.id, &m.path, &bucket, &prefix, &readOnly, &cached); err != nil {
		return nil, err
	}
	return m.dict("gcs", newDict(pair{"bucket", bucket.value()}, pair{"prefix", entryOf(prefix)}),
		pair{"read_only", optionalBool(readOnly)}, pair{"cache", cached.dict}), nil
}

func gitMount(c *invocation) (starlark.Value, error) {
	var m mountBase
	var remote text
	var ref starlark.Value
	var refresh positive[int]
	if err := c.unpack(&m.id, &m.path, &remote, &ref, &refresh); err != nil {
		return nil, err
	}
	if err := checkRemote(string(remote)); err != nil {
		return nil, c.argumentError("parameter remote_url: %w", err)
	}
	block := newDict(pair{"remote_url", remote.value()})
	if ref != starlark.None {
		var name text
		typ := member(ref, "type")
		if value := member(ref, "name"); !isString(typ, "branch") && !isString(typ, "tag") || value == nil || name.Unpack(value) != nil {
			return nil, c.argumentError(`parameter ref: want {"type": "branch", "name": …}, or "tag" in place of "branch"`)
		}
		block.SetKey(starlark.String("ref"), newDict(pair{"type", typ}, pair{"name", name.value()}))
	}
	if refresh.ptr != nil {
		block.SetKey(starlark.String("refresh_interval_seconds"), starlark.MakeInt(*refresh.ptr))
	}
	return m.dict("git", block), nil
}

// checkRemote is the rule for the URL of a repository.
func checkRemote(remote string) error {
	u, err := url.Parse(remote)
	switch {
	case strings.ContainsFunc(remote, func(r rune) bool { return r == 0 || unicode.IsSpace(r) }):
		return fmt.Errorf("%q contains a blank or a NUL character", remote)
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") == "":
		return fmt.Errorf("%q is no https URL with a host and a path", remote)
	case u.User != nil:
		return fmt.Errorf("it names a user: credentials do not belong into a URL")
	case strings.ContainsAny(remote, "?#"):
		return fmt.Errorf("%q has a query or a fragment", remote)
	}
	return nil
}

func contextHubMount(c *invocation) (starlark.Value, error) {
	var m mountBase
	var repo text
	var once optional[bool]
	if err := c.unpack(&m.id, &m.path, &repo, &once); err != nil {
		return nil, err
	}
	owner, name, found := strings.Cut(string(repo), "/")
	if !found || strings.TrimSpace(owner) == "" || strings.TrimSpace(name) == "" || strings.Contains(name, "/") {
		return nil, c.argumentError("parameter repo: got %q, want owner/name, or -/name for the workspace's own", string(repo))
	}
	return m.dict("contexthub", newDict(pair{"repo", repo.value()}, pair{"initial_pull_only", optionalBool(once)})), nil
}

// credentialKeys may not occur in a mount: they belong into auth.
var credentialKeys = []string{
	"access_key_id", "secret_access_key", "session_token", "service_account_json", "access_token", "refresh_token", "credentials", "credential",
}

// credentialIn finds one of them anywhere in a value, or returns "".
func credentialIn(v starlark.Value) string {
	switch v := v.(type) {
	case *starlark.Dict:
		for _, item := range v.Items() {
			if key, _ := starlark.AsString(item[0]); slices.Contains(credentialKeys, key) {
				return key
			}
			if key := credentialIn(item[1]); key != "" {
				return key
			}
		}
	case *starlark.List, starlark.Tuple:
		for element := range starlark.Elements(v.(starlark.Iterable)) {
			if key := credentialIn(element); key != "" {
				return key
			}
		}
	}
	return ""
}

func mountConfig(c *invocation) (starlark.Value, error) {
	var givenMounts, givenAuth, proxy starlark.Value
	if err := c.unpack(&givenMounts, &givenAuth, &proxy); err != nil {
		return nil, err
	}
	mounts, err := listOfDicts(givenMounts)
	if err == nil && len(mounts) == 0 {
		err = fmt.Errorf("there is no mount")
	}
	if err != nil {
		return nil, c.argumentError("parameter mounts: %w", err)
	}
	needs := map[string]bool{}
	for i, m := range mounts {
		typ, _ := starlark.AsString(member(m, "type"))
		switch typ {
		case "s3":
			needs["aws"] = true
		case "gcs":
			needs["gcp"] = true
		case "git", "contexthub":
		default:
			return nil, c.argumentError("parameter mounts: mount %d: its type is s3, gcs, git or contexthub", i)
		}
		if key := credentialIn(m); key != "" {
			return nil, c.argumentError("parameter mounts: mount %d: %s does not belong there; give credentials in auth", i, key)
		}
	}
	rules, err := listOfDicts(givenAuth)
	if err != nil {
		return nil, c.argumentError("parameter auth: %w", err)
	}
	auth := new(starlark.Dict)
	for i, rule := range rules {
		provider, block, err := mountAuth(rule)
		if err == nil && member(auth, provider) != nil {
			err = fmt.Errorf("there is another rule for %s", provider)
		}
		if err != nil {
			return nil, c.argumentError("parameter auth: rule %d: %w", i, err)
		}
		auth.SetKey(starlark.String(provider), block)
	}
	if proxy != starlark.None {
		if err := providersClash(proxy, newDict(pair{"auth", auth})); err != nil {
			return nil, c.argumentError("%w", err)
		}
	}
	for _, p := range []struct{ provider, mount string }{{"aws", "an s3"}, {"gcp", "a gcs"}} {
		given := member(auth, p.provider) != nil
		byProxy := p.provider == "aws" && enabledAWS(proxy)
		switch {
		case needs[p.provider] && !given && !byProxy:
			return nil, c.argumentError("%s mount needs %s_auth(…) in auth", p.mount, p.provider)
		case given && !needs[p.provider]:
			return nil, c.argumentError("auth has credentials of %s, and there is no mount for them", p.provider)
		}
	}
	return newDict(pair{"auth", auth}, pair{"mounts", starlark.NewList(mounts)}), nil
}

// mountAuth takes what mounts need out of a provider rule.
func mountAuth(rule starlark.Value) (provider string, block starlark.Value, err error) {
	provider, _ = starlark.AsString(member(rule, "type"))
	given := member(rule, provider)
	switch provider {
	case "aws":
		if member(given, "session_tags") != nil {
			return "", nil, fmt.Errorf("session_tags are for rules of a proxy only")
		}
		return provider, given, checkAWS(given)
	case "gcp":
		return provider, newDict(pair{"service_account_json", member(given, "service_account_json")}), checkGCP(given)
	}
	return "", nil, fmt.Errorf("want aws_auth(…) or gcp_auth(…)")
}

func enabledAWS(proxy starlark.Value) bool {
	rules, ok := member(proxy, "rules").(starlark.Sequence)
	return ok && slices.ContainsFunc(slices.Collect(starlark.Elements(rules)), func(rule starlark.Value) bool {
		return isString(member(rule, "type"), "aws") && member(rule, "enabled") == starlark.True
	})
}

// providersClash is the rule for both configurations of a sandbox: a provider's
// credentials stand in one of them. Either may be None.
func providersClash(proxy, mounts starlark.Value) error {
	given := member(proxy, "rules")
	if given == nil {
		return nil
	}
	rules, ok := given.(starlark.Sequence)
	if _, isDict := given.(starlark.Mapping); !ok || isDict {
		return fmt.Errorf("the rules of proxy_config are of type %s, want a list", given.Type())
	}
	for rule := range starlark.Elements(rules) {
		provider, _ := starlark.AsString(member(rule, "type"))
		if (provider == "aws" || provider == "gcp") && member(member(mounts, "auth"), provider) != nil {
			return fmt.Errorf("credentials of %s stand both in proxy_config and in mount_config", provider)
		}
	}
	return nil
}
