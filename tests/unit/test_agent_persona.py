from __future__ import annotations

from perdure.agent.persona import Persona
from perdure.config.keys import DurableAgentSettings


def test_the_prompt_says_what_is_there_and_nothing_else():
    assert Persona.of("bob").prompt() == "You are bob."
    said = {"role": "a clerk", "goal": "help", "instructions": ["be kind", "be quick"], "style_guidelines": "plain"}
    full = Persona.of("bob", **said)
    assert full.prompt(["Background work: none"]) == (
        "You are bob.\nYour role: a clerk\nYour goal: help\nInstructions:\n- be kind\n- be quick\nStyle:\n- plain\n"
        "Background work: none"
    )


def test_configuration_goes_over_the_constructor_part_by_part():
    persona = Persona.of("bob", role="a clerk", goal="help", system_prompt="Serve.", instructions="be kind")
    live = persona.under(DurableAgentSettings(agent_role="a pirate", agent_instructions=["say arr"]))
    assert live.prompt() == "Serve.\nYour role: a pirate\nYour goal: help\nInstructions:\n- say arr"
    assert persona.under(DurableAgentSettings()) is persona
    assert "be kind" not in persona.under(DurableAgentSettings(agent_instructions=[])).prompt()
