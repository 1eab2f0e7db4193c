# ruff: noqa: E501
"""Tickets written by hand, outside the phrase tables: how the demo model does on wording it was not
made for.
"""

HANDWRITTEN: list[tuple[str, str, str, str, str]] = [
    # ticket, category, priority, product, sentiment
    ("My Solara 77 Pro crashes every time I save. This is unacceptable, we need a fix today!", "technical", "urgent", "Solara 77 Pro", "angry"),
    ("Hello, I was billed twice for Norvik Desk this month. No rush, but please check.", "billing", "low", "Norvik Desk", "neutral"),
    ("I love my Brimble X2! Could you add a dark mode?", "feature", "normal", "Brimble X2", "happy"),
    ("Where is my parcel? I ordered the Quillfire Mini 5 three weeks ago and I have been waiting for 3 weeks.", "shipping", "high", "Quillfire Mini 5", "neutral"),
    ("I can't log in to Tarn Cloud anymore, the password reset mail never arrives. The deadline is tomorrow.", "account", "high", "Tarn Cloud", "neutral"),
    ("Please refund my Voltan SE. It is not what I expected and I am very disappointed.", "refund", "normal", "Voltan SE", "angry"),
    ("The Hexaline router keeps dropping the wifi connection. Nobody in the office can work!", "technical", "urgent", "Hexaline", "neutral"),
    ("Great product! But the invoice for Pondera 300 has the wrong address. Take your time.", "billing", "low", "Pondera 300", "happy"),
    ("We returned our Krellix Max last week and still have no refund. Your support is useless.", "refund", "normal", "Krellix Max", "angry"),
    ("It would be nice if Osprey Notes could export to PDF. Not urgent at all.", "feature", "low", "Osprey Notes", "neutral"),
    ("Package with the Drovo Lamp arrived damaged. I am furious.", "shipping", "normal", "Drovo Lamp", "angry"),
    ("How do I change my email address in Plexa One?", "account", "normal", "Plexa One", "neutral"),
    ("Our Mertz 4000 is down and everyone is blocked. Please help immediately.", "technical", "urgent", "Mertz 4000", "neutral"),
    ("you charged my card two times for zentro plus", "billing", "normal", "zentro plus", "neutral"),
    ("Delivery of the Faldor Bike is late. I need it by Friday.", "shipping", "high", "Faldor Bike", "neutral"),
    ("I'd like my money back for the Jubo Air, it was a mistake to buy it. No hurry.", "refund", "low", "Jubo Air", "neutral"),
    ("My account for Wexford Suite is locked and I have a presentation in one hour!", "account", "urgent", "Wexford Suite", "neutral"),
    ("Thank you for the wonderful Istara Camera. Any plans to add voice control?", "feature", "normal", "Istara Camera", "happy"),
    ("The Glint 9 shows error code 512 when I open it. This is the third time I report this. Terrible service.", "technical", "high", "Glint 9", "angry"),
    ("Could you send me the receipt for Bexley Fit? Whenever you have time.", "billing", "low", "Bexley Fit", "neutral"),
    ("The tracking number for my Oxbow Tent does not work.", "shipping", "normal", "Oxbow Tent", "neutral"),
    ("Please delete my Cadmus Go account. I am fed up with your company.", "account", "normal", "Cadmus Go", "angry"),
    ("Your team is amazing, but the battery of my Tovi Watch is empty after two hours. We have an event tomorrow.", "technical", "high", "Tovi Watch", "happy"),
    ("I want to return the Larkspur Blender. How does it work?", "refund", "normal", "Larkspur Blender", "neutral"),
    ("Rivet CRM should have keyboard shortcuts. Just a small suggestion.", "feature", "low", "Rivet CRM", "neutral"),
    ("The yearly fee of Samphire Pro went up. Why? I am really annoyed.", "billing", "normal", "Samphire Pro", "angry"),
    ("Nothing works: the Ardent Server is down, we are losing money every minute. This is a disgrace!", "technical", "urgent", "Ardent Server", "angry"),
    ("My Zyx-40 has not been delivered yet. I wrote to you twice already about this.", "shipping", "high", "Zyx-40", "neutral"),
    ("I forgot the password of my Hollin Pad. I'm so happy with it otherwise!", "account", "normal", "Hollin Pad", "happy"),
    ("When do I get the refund for my Cresta V6? It has been two months.", "refund", "high", "Cresta V6", "neutral"),
]  # fmt: skip
